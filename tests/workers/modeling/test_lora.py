"""LoRA: adapters are what is trained, what is sampled from, what is kept, and what comes out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.hyperparameters.supervised import SupervisedHyperparameters
from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.optim.test_update import hyperparameters, sampled, train
from tests.workers.training.test_reinforcement import Killed, attempt, killed_at, result_of
from tests.workers.training.tiny import Recorder
from workers.modeling import export, policy
from workers.modeling.lora import Lora, attach
from workers.modeling.policy import Policy
from workers.rollouts.engine import Sampling
from workers.rollouts.transformers import TransformersEngine
from workers.training.optim import objective
from workers.wire import ExitCode

MakeSpec = Callable[..., RunSpec]
Execute = Callable[..., tuple[int, Recorder]]

CPU = torch.device("cpu")
IDS = torch.arange(8).unsqueeze(0)
ADAPTED: dict[str, Any] = {"lora_rank": 4, "learning_rate": 0.05}


def load(folder: Path, seed: int = 3) -> Policy:
    return policy.load(folder, CPU, Lora(4, 32, seed, "owner/base"))


def trained(loaded: Policy) -> None:
    """Move every adapter off its first values."""
    generator = torch.Generator().manual_seed(0)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1, generator=generator)


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    answer: torch.Tensor = model(IDS).logits
    return answer


def test_training_starts_from_the_base_model_exactly(base: Path) -> None:
    assert torch.equal(logits(load(base).model), logits(policy.load(base, CPU).model))


def test_adapters_follow_from_the_jobs_seed(base: Path) -> None:
    first, same, other = (
        [p.clone() for p in load(base, seed).model.parameters() if p.requires_grad] for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_every_linear_layer_but_the_output_layer_is_adapted(tmp_path: Path, family: str) -> None:
    loaded = load(tiny.save(tmp_path / "model", family))
    adapted = {name.rpartition(".lora_")[0] for name, _ in loaded.model.named_parameters() if ".lora_" in name}
    linear = {
        name
        for name, module in tiny.model(family).named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name not in ("lm_head", "head")
    }
    if family == "mamba":  # whose kernels read some layers' weights without calling the layers
        linear = {name for name in linear if name.endswith("in_proj")}
    assert adapted == linear != set()


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_every_family_trains_and_only_its_adapters(
    make_spec: MakeSpec, execute: Execute, tmp_path: Path, family: str
) -> None:
    folder = tiny.save(tmp_path / "model", family)
    code, recorder = execute(make_spec(model_path=folder, n_steps=1, **ADAPTED))
    assert code == ExitCode.DONE
    assert recorder.metrics()[1]["troll"]["grad_norm"] > 0

    result = result_of(recorder).model_path
    merged, before = AutoModelForCausalLM.from_pretrained(result), tiny.model(family)
    assert not torch.equal(logits(merged), logits(before))
    moved = {n for n, p in merged.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert moved <= {f"{n}.weight" for n, m in before.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert "lm_head.weight" not in moved


def test_every_adapter_learns(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(n_steps=1, **ADAPTED))
    tensors = load_file(result_of(recorder).model_path / "adapter" / "adapter_model.safetensors")
    unmoved = [name for name, tensor in tensors.items() if "lora_B" in name and not tensor.any()]
    assert unmoved == []


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_merged_weights_and_pefts_adapter_are_the_model_that_was_trained(tmp_path: Path, family: str) -> None:
    loaded = load(tiny.save(tmp_path / "model", family))
    trained(loaded)
    export.export(loaded, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(loaded.model), rtol=0, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    by_peft = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    assert torch.equal(logits(by_peft), logits(loaded.model))


def test_the_adapter_names_its_base_by_the_models_id(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(n_steps=1, **ADAPTED))
    written = (result_of(recorder).model_path / "adapter" / "adapter_config.json").read_text()
    config = json.loads(written)
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("tiny", 4, 32)
    assert "/" not in written  # Where the server keeps its files is nobody else's business.


def test_the_transformers_engine_samples_from_the_adapted_model(base: Path) -> None:
    loaded = load(base)
    engine = TransformersEngine(loaded.model, loaded.stop_ids, loaded.context_length)

    def parted_from(other: Policy) -> float:
        ((rollout,),) = engine.generate([[5, 6, 7]], 1, Sampling(1.0, 12, seed=1))
        (scores,) = other.score([[5, 6, 7, *rollout.token_ids]])
        return max(abs(a - b) for a, b in zip(rollout.log_probs, scores[2:], strict=True))

    trained(loaded)
    assert parted_from(loaded) < 1e-4
    assert parted_from(policy.load(base, CPU)) > 0.1


def test_a_resumed_run_is_the_run_that_was_never_interrupted(make_spec: MakeSpec, execute: Execute) -> None:
    asked = {"n_steps": 5, "eval_interval": 2, **ADAPTED}
    spec = make_spec(**asked)
    _, whole = execute(make_spec("whole", **asked))
    first = killed_at(3)
    with pytest.raises(Killed):
        execute(spec, first)
    code, second = execute(attempt(spec, 2, first.checkpoints()))
    assert code == ExitCode.DONE
    assert tiny.without_times(first.metrics() | second.metrics()) == tiny.without_times(whole.metrics())
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = (load_file(result_of(each).model_path / name) for each in (second, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_checkpoints_state_is_the_adapter_alone(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(n_steps=1, **ADAPTED))
    (folder,) = recorder.checkpoints()
    (part,) = (folder / "state" / "tensors").iterdir()
    kinds = {key.split("/")[0] for key in load_file(part)}
    assert kinds == {"weight", "step", "exp_avg", "exp_avg_sq"}
    assert all(".lora_" in key for key in load_file(part))


def test_learning_works(make_spec: MakeSpec, execute: Execute) -> None:
    asked = {"n_steps": 15, "eval_interval": 15, "batch_size": 8, "group_size": 8, "max_completion_tokens": 2}
    spec = make_spec(grader=tiny.EXACT, lora_rank=8, learning_rate=0.02, eval_samples=8, **asked)
    # Every row asks for the same answer, so a model this small can learn it in a second.
    for path in filter(None, (spec.training_path, spec.validation_path)):
        rows = [json.loads(line) | {"answer": "7"} for line in path.read_text().splitlines()]
        path.write_text("\n".join(map(json.dumps, rows)))
    _, recorder = execute(spec)
    before, after = (recorder.metrics()[step]["full_valid_mean_reward"] for step in (0, 15))
    assert before < 0.2 < 0.6 < after


def test_the_default_learning_rate_is_ten_times_that_of_all_weights() -> None:
    rates = [
        resolve(Hyperparameters(lora_rank=rank, learning_rate_multiplier=2.0), training_rows=8).learning_rate
        for rank in (0, 1, 64)
    ]
    assert rates == pytest.approx([2e-6, 2e-5, 2e-5])


def test_supervised_fine_tuning_has_a_default_of_its_own() -> None:
    rates = [resolve(SupervisedHyperparameters(lora_rank=rank), training_rows=8).learning_rate for rank in (0, 8)]
    assert rates == pytest.approx([1e-5, 1e-4])


def test_adapters_stay_float32_on_a_bfloat16_base_under_autocast(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the frozen base in bfloat16, matrix products in bfloat16, gradients and steps in float32."""
    h = hyperparameters(lora_rank=4)
    exact = load(base)
    groups = sampled(exact)
    _, expected = train(exact, groups, h)

    for module in (policy, objective):
        monkeypatch.setattr(module, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    halved = Policy(base, model, exact.tokenizer, attach(model, Lora(4, 32, 3, "base")), recompute="always")
    numbers, gradients = train(halved, groups, h)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert (numbers["ratio"], numbers["kl_before_max"]) == (1.0, 0.0)
    ours, theirs = (torch.cat([gradient.flatten() for gradient in each]) for each in (gradients, expected))
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.98


def test_a_job_goes_on_from_anothers_result(make_spec: MakeSpec, execute: Execute) -> None:
    asked = {"n_steps": 1, **ADAPTED}
    first = result_of(execute(make_spec("first", **asked))[1]).model_path
    _, recorder = execute(make_spec("second", model_path=first, **asked))
    second = result_of(recorder).model_path
    began = AutoModelForCausalLM.from_pretrained(first)
    by_peft = PeftModel.from_pretrained(began, second / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(second)
    torch.testing.assert_close(logits(by_peft), logits(merged), rtol=0, atol=1e-4)


def test_answers_sampled_ahead_are_the_adapted_models(make_spec: MakeSpec, execute: Execute) -> None:
    asked = {"n_steps": 3, "mismatch_correction": "none", **ADAPTED}
    _, recorder = execute(make_spec(max_staleness=1, **asked))
    _, at_once = execute(make_spec("now", **asked))
    numbers, without = (
        [step["troll"]["mismatch_abs_max"] for number, step in each.metrics().items() if number]
        for each in (recorder, at_once)
    )
    # The first step's answers are the base's; the others are one update behind, which shows.
    assert numbers[0] < 1e-4 < 1e-2 < min(numbers[1:])
    assert max(without) < 1e-4
