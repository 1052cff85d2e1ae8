"""Training on answers that were held to a schema: the policy is the one that was sampled from, old and new alike."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.jobs.spec import RunSpec
from tests.workers.serving import tiny
from tests.workers.training.test_reinforcement import Killed, attempt, killed_at, result_of
from tests.workers.training.tiny import Recorder, without_times
from workers.errors import RunError
from workers.modeling import policy
from workers.modeling.policy import Policy
from workers.rollouts.engine import Sampling
from workers.rollouts.grammar import Grammar, unpacked
from workers.rollouts.transformers import TransformersEngine
from workers.training import preflight
from workers.training.data.batch import TrainingSample
from workers.training.optim import mismatch, objective, update
from workers.training.sampling.grammar import allowed_by, load_grammar
from workers.wire import ExitCode

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large", "largest"]}, "count": {"enum": [7, 12, 140]}},
    "required": ["size", "count"],
    "additionalProperties": False,
}
# Without the white space between parts that a random model likes.
ANSWERS = ["small", "large", "largest", "medium"]
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ANSWERS}, "strict": True}}
JSON_GRADER = {
    "type": "string_check",
    "name": "small",
    "input": "{{sample.output_text}}",
    "reference": '"small"',
    "operation": "eq",
}
PROMPTS = [tiny.tokenizer()(text)["input_ids"] for text in ("How many?", "A longer question: how large?", "?")]

Execute = Callable[..., tuple[int, Recorder]]


def hyperparameters(**asked: Any) -> ResolvedHyperparameters:
    wanted = {"mini_batches": 1, "learning_rate": 1e-2, "max_completion_tokens": 60, "batch_size": 3}
    return resolve(Hyperparameters.model_validate(wanted | asked), training_rows=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def loaded(folder: Path) -> Policy:
    return policy.load(folder, torch.device("cpu"))


def held(loaded: Policy, schema: dict[str, Any] = SCHEMA) -> Grammar:
    made = load_grammar(schema, loaded)
    assert made is not None
    return made


def sampled(loaded: Policy, grammar: Grammar, temperature: float = 1.0, length: int = 60) -> list[list[TrainingSample]]:
    engine = TransformersEngine(loaded.model, loaded.stop_ids, loaded.context_length)
    groups = engine.generate(PROMPTS, 3, Sampling(temperature, length, seed=1, grammar=grammar))
    return [
        [TrainingSample(prompt, rollout, value) for rollout, value in zip(group, (1.5, -0.5, -1.0), strict=True)]
        for prompt, group in zip(PROMPTS, groups, strict=True)
    ]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("kind", ["troll", "clip"])
def test_the_old_policy_is_the_one_that_sampled(loaded: Policy, temperature: float, kind: str) -> None:
    h, grammar = hyperparameters(temperature=temperature, objective=kind), held(loaded)
    batches = update.plan(sampled(loaded, grammar, temperature), loaded, h, allowed_by(grammar))
    for part in (part for batch in batches for part in batch.parts):
        ours = objective.old_policy(loaded, part, h).token_log_probs
        torch.testing.assert_close(ours, part.sampler_log_probs, atol=2e-5, rtol=0)
        assert mismatch.metrics(ours, part.sampler_log_probs)["mismatch_abs_max"] < 2e-5


@pytest.mark.parametrize("kind", ["troll", "clip"])
def test_the_first_update_starts_from_the_old_policy(loaded: Policy, kind: str) -> None:
    h, grammar = hyperparameters(objective=kind), held(loaded)
    batches = update.plan(sampled(loaded, grammar), loaded, h, allowed_by(grammar))
    old = update.read_old_policy(loaded, batches, h)
    numbers = update.update_policy(loaded, update.make_optimizer(loaded, h), batches, old, h, step=1)
    assert numbers["grad_norm"] > 0
    assert (numbers["ratio"], numbers["ratio_max"]) == (1.0, 1.0)


def test_gradients_are_those_of_the_policy_among_what_was_allowed(loaded: Policy) -> None:
    """Of the plain policy gradient, computed from whole rows of logits by autograd alone."""
    h, grammar = hyperparameters(objective="clip", max_grad_norm=1000), held(loaded)
    groups = sampled(loaded, grammar)
    batches = update.plan(groups, loaded, h, allowed_by(grammar))
    old = update.read_old_policy(loaded, batches, h)
    loaded.model.zero_grad()
    for part, rows in zip(batches[0].parts, old[0], strict=True):
        objective.loss(loaded, part, rows, h, batches[0].normalizer).loss.backward()
    ours = {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}
    loaded.model.zero_grad()
    samples = [sample for group in groups for sample in group]
    for sample in samples:
        answer = torch.tensor(sample.rollout.token_ids)
        whole = torch.tensor([[*sample.prompt_ids, *sample.rollout.token_ids]])
        logits = loaded.model(whole, use_cache=False).logits[0, len(sample.prompt_ids) - 1 : -1]
        may = unpacked(grammar.masks(sample.prompt_ids, sample.rollout.token_ids), loaded.vocabulary_size)
        chosen = logits.masked_fill(~may, -torch.inf).log_softmax(-1).gather(-1, answer[:, None])
        (-sample.advantage * chosen.sum() / sum(len(each.rollout.token_ids) for each in samples)).backward()
    for name, parameter in loaded.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", ["troll", "clip"])
def test_tokens_without_alternative_teach_nothing(loaded: Policy, kind: str) -> None:
    h, grammar = hyperparameters(objective=kind), held(loaded)
    (batch,) = update.plan(sampled(loaded, grammar), loaded, h, allowed_by(grammar))
    (part,) = batch.parts
    assert part.allowed is not None
    forced = unpacked(part.allowed.masks[part.allowed.rows], loaded.vocabulary_size).sum(-1) == 1
    assert 0 < int(forced.sum()) < len(forced)
    old = objective.old_policy(loaded, part, h)
    assert not old.token_log_probs[forced].any()
    without = replace(part, advantages=part.advantages * ~forced)
    gradients = []
    for each in (part, without):
        loaded.model.zero_grad()
        objective.loss(loaded, each, old, h, batch.normalizer).loss.backward()
        gradients.append([p.grad.clone() for p in loaded.model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kind", ["troll", "clip"])
def test_models_whose_logits_are_their_own_business_learn_the_same(folder: Path, kind: str) -> None:
    gradients = []
    for whole in (False, True):
        loaded = policy.load(folder, torch.device("cpu"))
        h, grammar = hyperparameters(objective=kind, max_grad_norm=1000), held(loaded)
        groups = sampled(loaded, grammar)
        if whole:
            loaded.lm_head = None
        batches = update.plan(groups, loaded, h, allowed_by(grammar))
        old = update.read_old_policy(loaded, batches, h)
        for part, rows in zip(batches[0].parts, old[0], strict=True):
            objective.loss(loaded, part, rows, h, batches[0].normalizer).loss.backward()
        gradients.append([p.grad for p in loaded.model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_check_before_training_holds_whole_logits_too(loaded: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    h, plain = hyperparameters(), loaded.logits
    seen: list[int] = []

    def noted(batch: Any) -> Any:
        seen.append(len(batch.positions))
        return plain(batch)

    monkeypatch.setattr(loaded, "logits", noted)
    preflight.worst_case_step(loaded, update.make_optimizer(loaded, h), h, PROMPTS, held(loaded))
    assert seen
    assert seen[0] % h.max_completion_tokens == 0


def test_micro_batches_are_small_enough_for_whole_logits(loaded: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "MICRO_BATCH_LOGITS", loaded.vocabulary_size * 100)
    assert update.token_budget(loaded) == update.MICRO_BATCH_TOKENS
    assert update.token_budget(loaded, whole_logits=True) == 100


@pytest.mark.parametrize(
    ("schema", "code"),
    [({"type": "nonsense"}, "invalid_json_schema"), ({"type": "array", "minItems": 10**9}, "invalid_json_schema")],
)
def test_a_schema_that_cannot_be_held_to_is_refused(loaded: Policy, schema: dict[str, Any], code: str) -> None:
    with pytest.raises(RunError, match="This JSON schema is not supported") as refusal:
        load_grammar(schema, loaded)
    assert (refusal.value.code, refusal.value.param) == (code, "response_format")


def make(make_spec: Callable[..., RunSpec], folder: Path, name: str = "run", **asked: Any) -> RunSpec:
    wanted = {"max_completion_tokens": 60, "n_steps": 3, "eval_interval": 1} | asked
    spec = make_spec(name, folder, grader=JSON_GRADER, **wanted)
    method = spec.job.method.model_copy(update={"response_format": FORMAT})
    return spec.model_copy(update={"job": spec.job.model_copy(update={"method": method})})


def test_a_run_learns_among_answers_that_all_fit(
    make_spec: Callable[..., RunSpec], execute: Execute, folder: Path
) -> None:
    code, recorder = execute(make(make_spec, folder, n_steps=6, group_size=8))
    assert code == ExitCode.DONE
    told = recorder.metrics()
    answers = [each["answer"] for data in told.values() for each in data["samples"]]
    assert answers
    assert all(json.loads(answer) in ANSWERS for answer in answers)
    assert told[6]["full_valid_mean_reward"] > told[0]["full_valid_mean_reward"] + 0.2
    assert all(told[step]["troll"]["mismatch_abs_max"] < 1e-3 for step in range(1, 7))
    assert not (result_of(recorder).model_path / "chat_template_kwargs.json").exists()


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_staleness": 1}, {"max_staleness": 2, "old_policy": "sampler"}],
    ids=["on policy", "one step ahead", "two steps ahead, around the sampler"],
)
def test_a_resumed_run_is_the_run_that_was_never_interrupted(
    make_spec: Callable[..., RunSpec], execute: Execute, folder: Path, settings: dict[str, Any]
) -> None:
    whole = execute(make(make_spec, folder, "whole", **settings))[1]
    spec = make(make_spec, folder, "cut", **settings)
    first = killed_at(2)
    with pytest.raises(Killed):
        execute(spec, first)
    code, second = execute(attempt(spec, 2, first.checkpoints()))
    assert code == ExitCode.DONE
    assert without_times(first.metrics() | second.metrics()) == without_times(whole.metrics())
