"""Exported folders are loaded by others as the model that was trained: weights, ends of answers, chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from service.contracts import chat_template
from tests.workers.exporting import models
from tests.workers.exporting.test_gguf import logits
from workers.exporting import folders
from workers.exporting.__main__ import carry_out
from workers.modeling import export, policy
from workers.modeling.lora import Lora

CPU = torch.device("cpu")
TEMPLATE = models.CHATML + "{% if quiet %}{{ '<q>' }}{% endif %}"
TALK = [{"role": "user", "content": "Hi"}]


def tuned(folder: Path, adapters: Lora | None, values: dict[str, Any]) -> tuple[Path, torch.Tensor]:
    """A result of training on a base in bfloat16, and what it computes."""
    tokenizer = models.byte_level(template=TEMPLATE)
    generation = {"eos_token_id": tokenizer.eos_token_id, "temperature": 0.7, "do_sample": True}
    base = models.save(folder / "base", "llama", tokenizer, dtype=torch.bfloat16, generation=generation)
    loaded = policy.load(base, CPU, adapters)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    export.export(loaded, folder / "result")
    if values:
        (folder / "result" / chat_template.FILE).write_text(json.dumps(values))
    return folder / "result", logits(loaded.model)


def make(source: Path, format: str, **more: Any) -> tuple[Path, dict[str, Any]]:
    folder = source.parent / format
    order = {"model": "mine", "source": str(source), "folder": str(folder), "format": format, "type": None, "hub": None}
    return folder, carry_out(order | more, lambda share: None)


@pytest.mark.parametrize("format", ["huggingface", "merged"])
def test_a_folder_is_the_model(tmp_path: Path, format: str) -> None:
    source, _ = tuned(tmp_path, Lora(4, 8, 3, "owner/base"), {})
    folder, told = make(source, format)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(each, dtype="auto") for each in (source, folder))
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(logits(ours), logits(theirs))
    assert (folder / "adapter").is_dir() is (format == "huggingface")
    assert (told["bytes"] > 0, len(told["sha256"])) == (True, 64)


def test_an_adapter_is_loaded_by_peft_upon_its_base(tmp_path: Path) -> None:
    source, expected = tuned(tmp_path, Lora(4, 8, 3, "owner/base"), {})
    folder, told = make(source, "adapter")
    assert not (folder / "config.json").exists()
    assert {path.suffix for path in folder.glob("*.safetensors")} == {".safetensors"}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, folder)), expected, rtol=0, atol=1e-4)
    assert "owner/base" in told["notes"][0]
    assert "--max-lora-rank 4" in told["notes"][0]


@pytest.mark.parametrize("format", ["huggingface", "adapter"])
def test_others_end_answers_where_the_service_does(tmp_path: Path, format: str) -> None:
    """The base names one end; the template's end of a turn is the other."""
    source, _ = tuned(tmp_path, Lora(4, 8, 3, "owner/base"), {})
    folder, _ = make(source, format)
    config = GenerationConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert set(config.eos_token_id) == set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    assert config.temperature == 0.7
    assert GenerationConfig.from_pretrained(source).eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("within", [False, True], ids=["beside", "within-the-configuration"])
def test_others_write_chats_as_in_training(tmp_path: Path, within: bool) -> None:
    source, _ = tuned(tmp_path, None, {"quiet": True})
    if within:
        template = (source / "chat_template.jinja").read_text()
        (source / "chat_template.jinja").unlink()
        settings = json.loads((source / "tokenizer_config.json").read_text())
        (source / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    folder, _ = make(source, "huggingface")
    texts = [
        AutoTokenizer.from_pretrained(each).apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
        for each in (source, folder)
    ]
    assert texts[1] == texts[0] + "<q>"


def test_weights_are_linked_and_the_models_own_files_stay_as_they_are(tmp_path: Path) -> None:
    source, _ = tuned(tmp_path, None, {"quiet": True})
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    folder, _ = make(source, "huggingface")
    for path in source.glob("*.safetensors"):
        assert path.samefile(folder / path.name)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    source, _ = tuned(tmp_path, None, {})
    (source / "tokenizer.json").unlink()
    _, told = make(source, "gguf")
    assert told["failure"]["code"] == "invalid_model"
    assert "tokenizer" in told["failure"]["message"]
    _, told = make(tmp_path / "gone", "gguf")
    assert told["failure"]["code"] == "model_not_found"


def test_an_error_that_was_not_foreseen_is_told_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = tuned(tmp_path, None, {})

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in the library")

    monkeypatch.setattr(folders, "write", fail)
    _, told = make(source, "huggingface")
    assert told["failure"]["code"] == "export_failed"
    assert "ZeroDivisionError" in told["failure"]["message"]
    assert "in the library" in capsys.readouterr().err
