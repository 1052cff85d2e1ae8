"""Models are loaded from folders that are complete and bring no code along."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training import tiny
from workers.demo import make_tokenizer
from workers.errors import RunError
from workers.modeling import model_folder, policy

CPU = torch.device("cpu")


def load(folder: Path) -> policy.Policy:
    return policy.load(folder, CPU)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "model")


def refused(folder: Path) -> str:
    with pytest.raises(RunError) as caught:
        load(folder)
    assert (caught.value.code, caught.value.param) == ("invalid_model", "model")
    return caught.value.message


def test_weights_are_float32_whatever_they_are_stored_in(tmp_path: Path) -> None:
    loaded = load(tiny.save(tmp_path / "model", dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.saved_dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_folder_that_asks_for_code_is_refused(folder: Path, name: str) -> None:
    edit(folder / name, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    assert "auto_map" in refused(folder)


def test_a_folder_with_code_is_refused(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit")
    assert "modeling.py" in refused(folder)


def test_quantized_weights_are_refused(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "fp8"})
    assert "quantized" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_file_that_was_cut_short_is_named_or_said_to_be_unreadable(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert refused(folder)


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in refused(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer" in refused(folder)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    assert "missing_keys" in refused(folder)


def test_a_model_without_an_end_token_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None, chat_template=None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    assert "end-of-sequence" in refused(folder)


def test_every_end_token_of_the_generation_config_stops(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[1, 4])
    assert load(folder).stop_ids == [1, 4]


def test_without_a_generation_config_every_end_token_of_the_config_stops(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=[0, 2])
    assert load(folder).stop_ids == [0, 1, 2]


def test_end_tokens_of_a_nested_text_config_stop(folder: Path) -> None:
    edit(folder / "config.json", text_config={"eos_token_id": [1, 3]})
    assert model_folder.stop_ids(folder, model_folder.load_tokenizer(folder)) == [1, 3]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>user<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (HARMONY, "<|return|>"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }} </s>{% endfor %}", "</s>"),
        ("{{ raise_exception('no') }}", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_the_templates(template: str | None, end: str | None) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|return|>", "<|end|>", "<|", "</s>"])
    tokenizer.chat_template = template
    assert model_folder.end_of_turn(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))


def test_the_end_of_a_turn_stops(folder: Path) -> None:
    tokenizer = model_folder.load_tokenizer(folder)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model_folder.stop_ids(folder, tokenizer)


def test_a_tokenizer_without_a_pad_token_will_do(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert load(folder).tokenizer.pad_token is None


def test_tokens_beyond_the_embedding_are_refused_by_name(folder: Path) -> None:
    loaded = load(folder)
    size = loaded.model.get_input_embeddings().num_embeddings
    loaded.tokenizer.add_tokens(["<new>"])
    (new,) = loaded.tokenizer("<new>", add_special_tokens=False)["input_ids"]
    assert new >= size
    loaded.check_tokens([[1, 2], [size - 1], []], "training_file")
    with pytest.raises(RunError, match=r"'<new>'.*training_file") as caught:
        loaded.check_tokens([[1, 2], [3, new]], "training_file")
    assert (caught.value.code, caught.value.param) == ("invalid_model", "model")
