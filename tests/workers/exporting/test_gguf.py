"""A GGUF file holds the model: its numbers, its tokenizer, what ends an answer, and the chat template."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from service.contracts import chat_template
from service.contracts.export_formats import GGUF_FAMILIES, GGUF_TYPES
from tests.workers.exporting import models
from tests.workers.exporting.models import CHATML
from workers.demo import make_tokenizer
from workers.errors import RunError
from workers.exporting import families, gguf_file
from workers.exporting.gguf_file import Source
from workers.modeling import model_folder

IDS = torch.arange(3, 43).unsqueeze(0)
NOT_READ_BY_TRANSFORMERS = {"gemma", "smollm3"}
"""test_llama_cpp.py has them."""


def export(folder: Path, type: str | None = None) -> GGUFReader:
    """Write the model beside its folder, and open it."""
    path = folder.parent / "made.gguf"
    gguf_file.write(Source.of(folder), path, "mine", type, lambda share: None)
    return GGUFReader(path)


def values(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def tokenizer_of(reader: GGUFReader) -> dict[str, Any]:
    start = "tokenizer.ggml."
    return {name.removeprefix(start): value for name, value in values(reader).items() if name.startswith(start)}


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    made: torch.Tensor = model.eval()(IDS).logits.float()
    return made


def by_transformers(folder: Path) -> torch.Tensor:
    """What the weights of the file make; of some settings transformers has its own defaults, so these are given."""
    config = AutoConfig.from_pretrained(folder)
    # It takes the file of this one for a Llama's, which is what it is.
    given = {} if config.model_type == "mistral" else {"config": config}
    model = AutoModelForCausalLM.from_pretrained(folder.parent, gguf_file="made.gguf", dtype=torch.float32, **given)
    return logits(model)


@pytest.mark.parametrize("family", [name for name in models.CONFIGS if name not in NOT_READ_BY_TRANSFORMERS])
def test_transformers_reads_the_weights_as_they_were(tmp_path: Path, family: str) -> None:
    folder = models.save(tmp_path / "model", family)
    export(folder)
    model, _ = model_folder.read(folder, torch.float32)
    torch.testing.assert_close(by_transformers(folder), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("type", "tolerance"), [("f32", 0.0), ("f16", 0.02), ("bf16", 0.2), ("q8_0", 0.2)], ids=GGUF_TYPES
)
def test_a_type_rounds_as_little_as_it_can(tmp_path: Path, type: str, tolerance: float) -> None:
    folder = models.save(tmp_path / "model", "qwen2")
    reader = export(folder, type)
    stored = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    assert stored["blk.0.attn_q.weight"] == type
    assert stored["blk.0.attn_norm.weight"] == "f32"
    model, _ = model_folder.read(folder, torch.float32)
    worst = float((by_transformers(folder) - logits(model)).abs().max())
    assert worst <= tolerance
    assert type == "f32" or worst > 0


@pytest.mark.parametrize("dtype", list(gguf_file.EXACT), ids=str)
def test_without_a_type_nothing_is_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = models.save(tmp_path / "model", "qwen3", dtype=dtype)
    (tensor,) = (each for each in export(folder).tensors if each.name == "blk.1.ffn_down.weight")
    assert tensor.tensor_type.name.lower() == gguf_file.EXACT[dtype]
    found = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).view(*reversed(tensor.shape.tolist()))
    model, _ = model_folder.read(folder, torch.float32)
    assert torch.equal(found, model.model.layers[1].mlp.down_proj.weight)


def test_weights_that_no_type_holds_ask_for_one(tmp_path: Path) -> None:
    folder = models.save(tmp_path / "model", dtype=torch.float64)
    with pytest.raises(RunError, match="stored in float64, which no type of GGUF holds: name one") as refused:
        export(folder)
    assert refused.value.code == "invalid_export"
    assert values(export(folder, "f32"))["general.file_type"] == 0


def test_a_number_that_f16_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tokenizer = models.byte_level()
    model = models.make("qwen3", len(tokenizer)).to(torch.bfloat16)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(RunError, match="f16 cannot hold"):
        export(folder, "f16")


def test_a_tensor_that_was_damaged_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.save(tmp_path / "model", "qwen2")
    right = GGUFReader

    def damaged(path: Path) -> GGUFReader:
        with path.open("r+b") as file:
            file.seek(-1000, 2)
            file.write(b"\x01\x02\x03\x04")
        return right(path)

    monkeypatch.setattr(gguf_file, "GGUFReader", damaged)
    with pytest.raises(RunError, match="is not what was written"):
        export(folder)


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    names = {tensor.name for tensor in export(models.save(tmp_path / "model", "qwen2")).tensors}
    assert "token_embd.weight" in names
    assert "output.weight" not in names
    names = {tensor.name for tensor in export(models.save(tmp_path / "other", "llama")).tensors}
    assert "output.weight" in names


# What is refused


def test_service_and_worker_know_the_same_families() -> None:
    assert set(GGUF_FAMILIES) == set(families.FAMILIES)
    assert set(GGUF_TYPES) == set(gguf_file.TYPES)


UNLIKE: dict[str, tuple[str, Callable[[Any], object]]] = {
    "an activation": ("qwen3", lambda config: setattr(config, "hidden_act", "relu")),
    "another rotation": ("qwen3", lambda config: config.rope_parameters.update(rope_type="dynamic", factor=2.0)),
    "a stretch of its own": ("qwen2-yarn", lambda config: config.rope_parameters.update(attention_factor=3.0)),
    "other layers of attention": ("gemma2", lambda config: setattr(config, "layer_types", ["full_attention"] * 2)),
    "another scale of queries": ("gemma2", lambda config: setattr(config, "query_pre_attn_scalar", 17)),
    "experts without a norm": ("qwen3_moe", lambda config: setattr(config, "norm_topk_prob", False)),
    "other rotated layers": ("smollm3", lambda config: setattr(config, "no_rope_layers", [1, 1, 0, 1])),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_what_llama_cpp_computes_otherwise_is_refused(what: str) -> None:
    family, change = UNLIKE[what]
    config = models.CONFIGS[family]()
    families.of(config)
    change(config)
    with pytest.raises(RunError, match=r"which llama\.cpp computes differently"):
        families.of(config)


def test_another_family_is_refused_with_those_that_are_not(tmp_path: Path) -> None:
    config = models.CONFIGS["qwen3"]()
    config.model_type = "mamba"
    with pytest.raises(RunError, match=r"'mamba'.*gemma, gemma2, .*qwen3_moe, smollm3"):
        families.of(config)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = models.save(tmp_path / "model", "qwen3", make_tokenizer())
    with pytest.raises(RunError, match="tokenizer of the kind 'WordLevel'"):
        Source.of(folder)


def test_a_way_of_splitting_that_has_no_name_is_refused(tmp_path: Path) -> None:
    folder = models.save(tmp_path / "model", "qwen3", models.byte_level(r"\p{L}+|\s"))
    with pytest.raises(RunError, match="splits text in a way of its own"):
        Source.of(folder)


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    tokenizer = models.byte_level()
    folder = models.save(tmp_path / "model", "qwen3", tokenizer)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(RunError, match=r"embeddings.*resize_token_embeddings"):
        Source.of(folder)


# The tokenizer


def test_every_embedding_has_a_token_of_its_kind(tmp_path: Path) -> None:
    """Rows beyond the tokenizer's, as many bases have them, and tokens that were added after training."""
    tokenizer = models.byte_level(added=("<tool>",))
    tokenizer.add_tokens(["<think>", "[PAD310]"])
    folder = models.save(tmp_path / "model", "qwen3", tokenizer, rows=320)
    made = tokenizer_of(export(folder))
    assert (made["model"], made["pre"], len(made["tokens"])) == ("gpt2", "qwen2", 320)
    kinds = dict(zip(made["tokens"], made["token_type"], strict=True))
    assert kinds["<|im_end|>"] == kinds["<tool>"] == TokenType.CONTROL
    assert kinds["<think>"] == TokenType.USER_DEFINED
    assert {token: id for id, token in enumerate(made["tokens"]) if id < len(tokenizer)} == tokenizer.get_vocab()
    padding = made["tokens"][len(tokenizer) :]
    assert {kinds[token] for token in padding} == {TokenType.UNUSED}
    assert "[[PAD310]]" in padding


@pytest.mark.parametrize(
    ("make", "model", "prefix"),
    [
        (models.sentencepiece, "llama", True),
        (lambda: models.sentencepiece(prefix=False), "llama", False),
        (models.unigram, "t5", True),
    ],
    ids=["sentencepiece", "sentencepiece-without-prefix", "unigram"],
)
def test_pieces_have_scores(tmp_path: Path, make: Callable[[], Any], model: str, prefix: bool) -> None:
    tokenizer = make()
    made = tokenizer_of(export(models.save(tmp_path / "model", "llama", tokenizer)))
    assert (made["model"], made["add_space_prefix"]) == (model, prefix)
    assert len(set(made["scores"])) > 30
    assert (made["bos_token_id"], made["eos_token_id"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    kinds = dict(zip(made["tokens"], made["token_type"], strict=True))
    assert kinds["<unk>"] == TokenType.UNKNOWN
    assert kinds["<s>"] == TokenType.CONTROL
    assert model != "llama" or kinds["<0x0A>"] == TokenType.BYTE


def test_merges_that_scores_cannot_say_are_refused(tmp_path: Path) -> None:
    tokenizer = models.sentencepiece()
    state = tokenizer.backend_tokenizer.to_str()
    changed = json.loads(state)
    changed["model"]["merges"] = changed["model"]["merges"][::2]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(changed)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    folder = models.save(tmp_path / "model", "llama", other)
    with pytest.raises(RunError, match="merges that are not SentencePiece's"):
        Source.of(folder)


# What ends an answer


def ends(made: dict[str, Any]) -> set[str]:
    slots = (made.get(f"{slot}_token_id") for slot in ("eos", "eot", "eom"))
    return {made["tokens"][id] for id in slots if id is not None}


def test_an_end_of_turn_that_only_the_template_names_ends_answers(tmp_path: Path) -> None:
    folder = models.save(tmp_path / "model", "qwen3")
    made = tokenizer_of(export(folder))
    assert made["tokens"][made["eos_token_id"]] == "<|endoftext|>"
    assert made["tokens"][made["eot_token_id"]] == "<|im_end|>"
    assert {made["tokens"][id] for id in made["eos_token_ids"]} == {"<|endoftext|>", "<|im_end|>"}


def test_ends_that_only_the_generation_config_names_end_answers(tmp_path: Path) -> None:
    tokenizer = models.byte_level(added=("<|call|>",), template=None)
    wanted = ["<|im_end|>", "<|call|>"]
    generation = {"eos_token_id": tokenizer.convert_tokens_to_ids(wanted)}
    folder = models.save(tmp_path / "model", "qwen3", tokenizer, generation=generation)
    assert ends(tokenizer_of(export(folder))) == {"<|endoftext|>", *wanted}


def test_an_end_that_was_added_as_a_plain_token_is_a_control_token(tmp_path: Path) -> None:
    tokenizer = models.byte_level(template=None)
    tokenizer.add_tokens(["<|stop|>"])
    generation = {"eos_token_id": [tokenizer.convert_tokens_to_ids("<|stop|>")]}
    made = tokenizer_of(export(models.save(tmp_path / "model", "qwen3", tokenizer, generation=generation)))
    assert "<|stop|>" in ends(made)
    assert made["token_type"][made["tokens"].index("<|stop|>")] == TokenType.CONTROL


def test_more_ends_than_a_file_has_places_for_are_refused(tmp_path: Path) -> None:
    stops = ("<stop-a>", "<stop-b>", "<stop-c>")
    tokenizer = models.byte_level(added=stops)
    generation = {"eos_token_id": tokenizer.convert_tokens_to_ids(list(stops))}
    folder = models.save(tmp_path / "model", "qwen3", tokenizer, generation=generation)
    with pytest.raises(RunError, match=r"5 tokens.*places for 3.*<stop-"):
        Source.of(folder)


# The chat template


def test_the_template_comes_along(tmp_path: Path) -> None:
    folder = models.save(tmp_path / "model", "qwen3")
    assert tokenizer_of_chat(export(folder)) == CHATML


def tokenizer_of_chat(reader: GGUFReader) -> str:
    return str(values(reader)["tokenizer.chat_template"])


def test_what_the_template_was_told_in_training_it_is_told_everywhere(tmp_path: Path) -> None:
    template = CHATML + "{% if not enable_thinking %}{{ '<think></think>' + style }}{% endif %}"
    folder = models.save(tmp_path / "model", "qwen3", models.byte_level(template=template))
    (folder / chat_template.FILE).write_text('{"enable_thinking": false, "style": "a \\"b\\"\\n\\u00e9 {{"}')
    carried = tokenizer_of_chat(export(folder))
    tokenizer = models.byte_level(template=carried)
    messages = [{"role": "user", "content": "Hi"}]
    # As llama.cpp does, which says of itself that there is to be thinking.
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert text.endswith('<|im_start|>assistant\n<think></think>a "b"\né {{')


@pytest.mark.parametrize("begins", [True, False])
def test_a_chat_begins_with_the_token_that_it_was_trained_with(tmp_path: Path, begins: bool) -> None:
    """The tokenizer puts a token at the beginning of a text; a chat has one only where its template writes it."""
    template = models.INST if begins else models.INST.replace("{{ bos_token }}", "")
    folder = models.save(tmp_path / "model", "llama", models.sentencepiece(template=template))
    assert tokenizer_of(export(folder))["add_bos_token"] is begins
