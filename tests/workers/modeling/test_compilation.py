"""Compiled layers: the numbers of the others, for all that is read for training and nothing else.

Others of torch's own are put in the place of the real compiler, which takes a minute and needs one for C: what they
compile runs as it was written.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from tests.workers.training import tiny
from workers import wire
from workers.modeling import compilation, policy
from workers.modeling.compilation import CompilationError
from workers.modeling.lora import Lora
from workers.modeling.policy import Policy
from workers.modeling.recomputation import When
from workers.modeling.rows import Block, Continuation, Rows, collate
from workers.rollouts.engine import Rollout, Sampling
from workers.rollouts.transformers import TransformersEngine
from workers.training.attempt import compile_layers
from workers.training.data.batch import TrainingSample
from workers.training.optim import objective, update

CPU = torch.device("cpu")
LORA = Lora(4, 32, 3, "base")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def rows(prompts: int, answers: int, length: int) -> Rows:
    answer = Continuation([4 + place % 9 for place in range(length)], range(length))
    return collate([[Block([1, 2, 3], [answer] * answers)]] * prompts, CPU)


def gradients(loaded: Policy, read: Rows) -> tuple[Tensor, list[Tensor]]:
    logits = loaded.logits(read)
    logits.log_softmax(-1)[:, 3].sum().backward()
    found = [p.grad for p in loaded.model.parameters() if p.grad is not None]
    loaded.model.zero_grad(set_to_none=True)
    return logits.detach(), found


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    ("adapters", "recompute"), [(None, "never"), (LORA, "always")], ids=["full", "lora, recomputed"]
)
def test_numbers_are_those_of_layers_that_are_not_compiled(
    base: Path, monkeypatch: pytest.MonkeyPatch, adapters: Lora | None, recompute: When
) -> None:
    # It divides into forward and backward, as the real one does.
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    loaded = policy.load(base, CPU, adapters, recompute=recompute)
    read = rows(2, 2, 5)
    logits, expected = gradients(loaded, read)
    loaded.compile()
    before = graphs()
    same_logits, given = gradients(loaded, read)
    torch.testing.assert_close(same_logits, logits)
    torch.testing.assert_close(given, expected)
    assert graphs() > before


def test_layers_and_lengths_share_their_code(base: Path) -> None:
    loaded = policy.load(base, CPU)
    loaded.compile()
    before = graphs()
    for length in (5, 6, 9):
        gradients(loaded, rows(3, 1, length))
    assert graphs() == before


def test_the_old_policy_is_read_as_what_is_learned_from(base: Path) -> None:
    loaded = policy.load(base, CPU)
    h = resolve(Hyperparameters.model_validate({"mini_batches": 1}), training_rows=1)
    sample = TrainingSample([1, 2, 3], Rollout([4, 5, 6], [-1.0] * 3, "stop"), advantage=1.0)
    (batch,) = update.plan([[sample]], loaded, h)
    recorded: list[bool] = []
    loaded.model.model.layers[0].register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    objective.old_policy(loaded, batch.parts[0], h)
    assert recorded == [False]
    loaded.compile()
    recorded.clear()
    old = objective.old_policy(loaded, batch.parts[0], h)
    assert recorded == [True]
    assert not old.token_log_probs.requires_grad


def test_sampling_is_not_compiled(base: Path) -> None:
    loaded = policy.load(base, CPU)
    engine = TransformersEngine(loaded.model, loaded.stop_ids, loaded.context_length)
    plain = engine.generate([[5, 6, 7]], 4, Sampling(1.0, 10, seed=1))
    loaded.compile()
    before = graphs()
    assert engine.generate([[5, 6, 7]], 4, Sampling(1.0, 10, seed=1)) == plain
    assert graphs() == before


def test_a_frozen_model_is_compiled_too(base: Path) -> None:
    loaded = policy.load(base, CPU)
    loaded.model.requires_grad_(requires_grad=False)
    loaded.compile()
    assert loaded.compiled


def test_trying_leaves_neither_gradients_nor_random_numbers_changed(base: Path) -> None:
    loaded = policy.load(base, CPU)
    random = torch.get_rng_state()
    loaded.compile()
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_layers_that_cannot_be_compiled_are_read_as_they_are(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nSee the manual.")

    monkeypatch.setattr(compilation, "BACKEND", refuse)
    loaded = policy.load(base, CPU)
    plain = gradients(loaded, rows(2, 1, 6))
    with pytest.raises(CompilationError, match=r"Failed to find C compiler\.$"):
        loaded.compile()
    assert not loaded.compiled
    assert torch.equal(gradients(loaded, rows(2, 1, 6))[0], plain[0])


def test_a_job_whose_model_cannot_be_compiled_is_told_and_goes_on(tmp_path: Path) -> None:
    recorder = tiny.Recorder()
    loaded = policy.load(tiny.save(tmp_path / "model", "mamba"), CPU)
    compile_layers(loaded, recorder.channel)
    (event,) = recorder.lines
    assert isinstance(event, wire.Event)
    assert (event.level, "MambaForCausalLM keeps a state" in event.message) == ("warn", True)


def test_layers_that_fail_when_they_run_are_read_as_they_are(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: Any) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError("no kernel image")

        return fail

    monkeypatch.setattr(compilation, "BACKEND", compiled)
    loaded = policy.load(base, CPU)
    with pytest.raises(CompilationError, match="no kernel image"):
        loaded.compile()
    assert not loaded.compiled


def test_code_that_gives_other_states_is_not_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(module: Any, _inputs: Any) -> Any:
        return lambda *given: [output * 2 for output in module(*given)]

    monkeypatch.setattr(compilation, "BACKEND", compiled)
    loaded = policy.load(base, CPU)
    with pytest.raises(CompilationError, match="apart from what they should"):
        loaded.compile()
    assert not loaded.compiled
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_experts_that_cannot_be_computed_again_are_read_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    loaded = policy.load(tiny.save(tmp_path / "model", "deepseek_v3"), CPU, recompute="always")
    with pytest.raises(CompilationError):
        loaded.compile()
    logits, found = gradients(loaded, rows(2, 1, 6))
    assert found
    assert torch.isfinite(logits).all()


def test_models_that_keep_a_state_are_not_compiled(tmp_path: Path) -> None:
    loaded = policy.load(tiny.save(tmp_path / "model", "mamba"), CPU)
    with pytest.raises(CompilationError, match="keeps a state"):
        loaded.compile()
    assert not loaded.compiled
