"""What is exported is what was trained, and of the base model what was not."""

from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from service.contracts import chat_template
from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.test_reinforcement import result_of
from tests.workers.training.tiny import Recorder
from workers.demo import make_tokenizer
from workers.errors import RunError
from workers.modeling import export, lora, model_folder, policy, rounding
from workers.modeling.lora import Lora
from workers.modeling.policy import Policy
from workers.wire import ExitCode

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ADAPTERS = Lora(4, 32, 3, "owner/base")


@torch.no_grad()
def log_probs(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    rows: torch.Tensor = model.eval()(torch.arange(8).unsqueeze(0)).logits.float().log_softmax(-1)
    return rows


@torch.no_grad()
def train(loaded: Policy) -> None:
    generator = torch.Generator().manual_seed(0)
    step = 0.1 if loaded.adapter else 0.02
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.add_(step * torch.randn(parameter.shape, generator=generator))


def as_on_a_gpu(folder: Path) -> Policy:
    """Adapters on a base that is computed with in bfloat16, whatever it is stored in."""
    model, tokenizer = model_folder.read(folder, torch.bfloat16)
    return Policy(folder, model.eval(), tokenizer, lora.attach(model, ADAPTERS))


def in_several_files(folder: Path, dtype: torch.dtype) -> Path:
    tiny.model("qwen3").to(dtype).save_pretrained(folder, max_shard_size="20KB")
    make_tokenizer().save_pretrained(folder)
    assert len(model_folder.weight_files(folder)) > 1
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = model_folder.weight_files(folder)
    return {name: weight for file in files for name, weight in load_file(folder / file).items()}


def are_the_same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """To the bit, which tells 0 from -0."""
    return left.dtype == right.dtype and torch.equal(left.view(torch.uint8), right.view(torch.uint8))


@pytest.mark.parametrize("adapters", [None, ADAPTERS], ids=["full", "lora"])
@pytest.mark.parametrize("family", [*tiny.CONFIGS, *tiny.SCALED, *tiny.MIXTURES])
def test_a_family_comes_back_as_it_was_trained(tmp_path: Path, family: str, adapters: Lora | None) -> None:
    loaded = policy.load(tiny.save(tmp_path / "model", family), CPU, adapters)
    before = log_probs(loaded.model)
    train(loaded)
    after = log_probs(loaded.model)
    assert float((after - before).abs().max()) > 0.01
    export.export(loaded, tmp_path / "out")
    again, _ = model_folder.read(tmp_path / "out", torch.float32)
    torch.testing.assert_close(log_probs(again), after, rtol=0, atol=1e-4 if adapters else 0)
    if adapters:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        by_peft = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
        torch.testing.assert_close(log_probs(by_peft), after, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "gpt_oss"])
def test_a_job_adapts_a_mixture(
    make_spec: Callable[..., RunSpec],
    execute: Callable[..., tuple[int, Recorder]],
    tmp_path: Path,
    family: str,
) -> None:
    folder = tiny.save(tmp_path / "model", family)
    code, recorder = execute(make_spec(model_path=folder, n_steps=2, lora_rank=4, learning_rate=0.05))
    assert code == ExitCode.DONE
    for made in (result_of(recorder).model_path, recorder.checkpoints()[0] / "model"):
        merged, _ = model_folder.read(made, torch.float32)
        by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), made / "adapter")
        torch.testing.assert_close(log_probs(merged), log_probs(by_peft), rtol=0, atol=1e-4)
        assert not torch.equal(log_probs(merged), log_probs(tiny.model(family)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_untrained_adapters_leave_the_base_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    base = in_several_files(tmp_path / "model", dtype)
    export.export(as_on_a_gpu(base), tmp_path / "out")
    assert model_folder.weight_files(tmp_path / "out") == model_folder.weight_files(base)
    ours, theirs = weights_of(tmp_path / "out"), weights_of(base)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not are_the_same(ours[name], theirs[name])] == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adapters_are_added_to_the_stored_weights_and_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    base = in_several_files(tmp_path / "model", dtype)
    loaded = as_on_a_gpu(base)
    train(loaded)
    export.export(loaded, tmp_path / "out")
    ours, theirs = weights_of(tmp_path / "out"), weights_of(base)
    layers = {name: module for name, module in loaded.model.named_modules() if isinstance(module, LoraLayer)}
    for name, weight in theirs.items():
        layer = layers.get(name.removesuffix(".weight"))
        added = layer.get_delta_weight(lora.NAME).detach() if layer else None
        expected = weight if added is None else rounding.stochastically(weight.float() + added, dtype, name)
        if added is None:
            assert are_the_same(ours[name], expected), name
        else:
            torch.testing.assert_close(ours[name], expected, msg=name)


BESIDE = {
    "vision_tower.patches.weight": torch.arange(6000, dtype=torch.float16),
    "mtp.layers.0.weight": torch.arange(3.0),
    "model.layers.46.shared_head.weight": torch.full((2, 2), -0.0, dtype=torch.bfloat16),
    "vision_tower.positions": torch.arange(4),
}
"""Weights that no class for causal language models has; some of the names are ones that transformers ignores."""


def report_on(folder: Path) -> dict[str, Any]:
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    return dict(report)


@pytest.mark.parametrize("shards", [False, True], ids=["one-file", "shards"])
@pytest.mark.parametrize("adapters", [None, ADAPTERS], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["qwen3", "gpt2", "glm4_moe"])
def test_weights_of_parts_that_are_not_loaded_are_kept(
    tmp_path: Path, family: str, adapters: Lora | None, shards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.save(tmp_path / "model", family, dtype=torch.bfloat16)
    weights = weights_of(base)
    save_file(weights | BESIDE, base / "model.safetensors", {"format": "pt"})
    if shards:
        in_shards = partialmethod(PreTrainedModel.save_pretrained, max_shard_size="10KB")
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", in_shards)
    loaded = policy.load(base, CPU, adapters)
    train(loaded)
    trained = log_probs(loaded.model)
    export.export(loaded, tmp_path / "out")
    ours = weights_of(tmp_path / "out")
    assert {name: are_the_same(ours[name], each) for name, each in BESIDE.items()} == dict.fromkeys(BESIDE, True)
    assert ours.keys() == weights.keys() | BESIDE.keys()
    assert len(model_folder.weight_files(tmp_path / "out")) == 1 or (shards and not adapters)
    assert report_on(tmp_path / "out") == report_on(base)
    again, _ = model_folder.read(tmp_path / "out", torch.float32)
    torch.testing.assert_close(log_probs(again), trained, rtol=0, atol=0.2)
    assert not torch.allclose(log_probs(again), log_probs(model_folder.read(base, torch.float32)[0]), rtol=0, atol=0.01)


def test_a_matrix_that_is_tied_is_not_taken_for_one_that_is_not_loaded(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "model", "qwen2")
    weights = weights_of(base)
    assert "lm_head.weight" not in weights
    embeddings = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": embeddings.clone()}, base / "model.safetensors", {"format": "pt"})
    loaded = policy.load(base, CPU)
    train(loaded)
    export.export(loaded, tmp_path / "out")
    again, _ = model_folder.read(tmp_path / "out", torch.float32)
    torch.testing.assert_close(log_probs(again), log_probs(loaded.model), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_weights_of_a_base_in_several_files_are_trained_and_stored_in_its_dtype(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    loaded = policy.load(in_several_files(tmp_path / "model", dtype), CPU)
    train(loaded)
    export.export(loaded, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    for name, parameter in loaded.model.named_parameters():
        expected = rounding.stochastically(parameter.detach(), dtype, name)
        assert are_the_same(again.get_parameter(name).detach(), expected), name


@pytest.mark.parametrize("usual", [torch.bfloat16, torch.float32], ids=str)
def test_each_weight_is_stored_in_the_dtype_its_base_has_it_in(tmp_path: Path, usual: torch.dtype) -> None:
    base = tiny.save(tmp_path / "model", "qwen3", dtype=usual)
    other = torch.float32 if usual == torch.bfloat16 else torch.bfloat16
    mixed = {name: each.to(other) if "norm" in name else each for name, each in weights_of(base).items()}
    save_file(mixed, base / "model.safetensors", {"format": "pt"})
    loaded = policy.load(base, CPU)
    assert loaded.rounded
    export.export(loaded, tmp_path / "out")
    untrained = weights_of(tmp_path / "out")
    assert untrained.keys() == mixed.keys()
    assert [name for name in mixed if not are_the_same(untrained[name], mixed[name])] == []
    train(loaded)
    export.export(loaded, tmp_path / "out")
    for name, weight in weights_of(tmp_path / "out").items():
        expected = rounding.stochastically(loaded.model.get_parameter(name).detach(), mixed[name].dtype, name)
        assert are_the_same(weight, expected), name


@pytest.mark.parametrize("adapters", [None, ADAPTERS], ids=["full", "lora"])
def test_a_result_in_16_bits_keeps_what_small_steps_taught(tmp_path: Path, adapters: Lora | None) -> None:
    base = tiny.save(tmp_path / "model", "qwen3", dtype=torch.bfloat16)
    loaded = policy.load(base, CPU, adapters)
    before = log_probs(loaded.model)
    optimizer = torch.optim.AdamW([p for p in loaded.model.parameters() if p.requires_grad], lr=3e-5)
    for _ in range(10):
        loaded.model(torch.arange(8).unsqueeze(0)).logits.log_softmax(-1)[..., 3].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    taught = log_probs(loaded.model)
    export.export(loaded, tmp_path / "out")
    kept = log_probs(model_folder.read(tmp_path / "out", torch.float32)[0])
    assert float((kept - taught).norm()) < 0.3 * float((taught - before).norm())


def without_a_weight(tensors: dict[str, Any]) -> None:
    tensors.pop("model.layers.0.mlp.up_proj.weight")


def with_another_value(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"] + 1


@pytest.mark.parametrize("damage", [without_a_weight, with_another_value])
@pytest.mark.parametrize("adapters", [None, ADAPTERS], ids=["full", "lora"])
def test_a_result_that_is_not_what_was_trained_is_refused(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[dict[str, Any]], None],
    adapters: Lora | None,
) -> None:
    loaded = policy.load(base, CPU, adapters)
    writer = "workers.modeling.export.save_file" if adapters else "transformers.modeling_utils.safe_save_file"

    def damaged(tensors: dict[str, Any], *rest: Any, **options: Any) -> None:
        tensors = dict(tensors)
        damage(tensors)
        save_file(tensors, *rest, **options)

    monkeypatch.setattr(writer, damaged)
    with pytest.raises(RunError) as error:
        export.export(loaded, tmp_path / "out")
    assert error.value.code == "invalid_result"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("adapters", [None, ADAPTERS], ids=["full", "lora"])
def test_whoever_generates_with_the_result_stops_where_its_answers_end(tmp_path: Path, adapters: Lora | None) -> None:
    base = tiny.save(tmp_path / "model")
    (base / export.GENERATION_CONFIG).unlink()
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|user|>{% endfor %}"
    tokenizer.save_pretrained(base)
    loaded = policy.load(base, CPU, adapters)
    ends = sorted([tokenizer.eos_token_id, tokenizer.get_vocab()["<|user|>"]])
    assert loaded.stop_ids == ends
    export.export(loaded, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == ends
    export.export(policy.load(tmp_path / "out", CPU), tmp_path / "again")
    assert GenerationConfig.from_pretrained(tmp_path / "again").eos_token_id == ends


@pytest.mark.parametrize("adapters", [None, ADAPTERS], ids=["full", "lora"])
def test_what_the_template_was_told_is_remembered(tmp_path: Path, adapters: Lora | None) -> None:
    loaded = policy.load(tiny.save(tmp_path / "model"), CPU, adapters)
    loaded.template_values = {"enable_thinking": False, "notes": ["é"]}
    export.export(loaded, tmp_path / "out")
    assert chat_template.remembered(tmp_path / "out") == loaded.template_values
