"""A supervised run: what it learns, tells and leaves behind, and that it resumes exactly."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from service.contracts import chat_template
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.supervised import SupervisedHyperparameters
from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder, without_times
from workers import wire
from workers.data import conversations
from workers.demo import make_tokenizer
from workers.modeling import policy
from workers.training import supervised
from workers.training.optim import update
from workers.training.reporting.clock import Clock
from workers.wire import ExitCode

Execute = Callable[..., tuple[int, Recorder]]


@pytest.fixture
def make(tmp_path: Path, base: Path) -> Callable[..., RunSpec]:
    def make(name: str = "run", model_path: Path = base, **asked: Any) -> RunSpec:
        return tiny.supervised_spec(tmp_path / name, model_path, **asked)

    return make


def result(recorder: Recorder) -> wire.Result:
    (found,) = (line for line in recorder.lines if isinstance(line, wire.Result))
    return found


def test_a_run_learns_its_rows_and_leaves_a_model(make: Callable[..., RunSpec], execute: Execute) -> None:
    spec = make(n_steps=40, eval_interval=20, batch_size=9)
    code, told = execute(spec)
    assert code == ExitCode.DONE
    metrics = told.metrics()
    assert list(metrics) == list(range(41))
    assert metrics[0]["train_loss"] is None
    assert metrics[0]["full_valid_loss"] > 1.0
    assert metrics[40]["full_valid_loss"] < 0.5 * metrics[0]["full_valid_loss"]
    assert metrics[40]["full_valid_mean_token_accuracy"] > 0.9
    assert [path.name for path in told.checkpoints()] == ["step-000040", "step-000020"]
    end = result(told)
    # Each answer has a digit or three and the token that ends it; the turns of weight 0 do not count.
    per_epoch = sum(len(str(a + b)) + 1 for a, b in tiny.ROWS)
    assert end.trained_tokens == 40 * per_epoch
    assert end.metrics["valid_loss"] == metrics[40]["valid_loss"] == metrics[40]["full_valid_loss"]
    AutoModelForCausalLM.from_pretrained(end.model_path)


def test_the_loss_is_that_of_the_whole_models_logits(make: Callable[..., RunSpec], execute: Execute) -> None:
    spec = make(n_steps=1, batch_size=9)
    _, told = execute(spec)
    loaded = policy.load(spec.model_path, torch.device("cpu"))
    rows = conversations.load(spec.training_path, loaded.tokenizer, loaded.stop_ids, 48, "training_file")
    losses, right = [], []
    for (example,) in rows:
        ids = torch.tensor(example.token_ids)
        logits = loaded.model(ids.unsqueeze(0)).logits[0]
        places = torch.tensor(example.learned)
        losses.append(torch.nn.functional.cross_entropy(logits[places - 1], ids[places], reduction="none"))
        right.append(logits[places - 1].argmax(-1) == ids[places])
    event = told.metrics()[1]
    assert event["train_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert event["train_mean_token_accuracy"] == pytest.approx(torch.cat(right).float().mean().item())
    assert event["train_tokens"] == len(torch.cat(losses))


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mamba"])
def test_any_split_into_micro_batches_gives_the_same_gradient(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = policy.load(tiny.save(tmp_path / "model", family), torch.device("cpu"))
    rows = supervised.load(loaded, tiny.write_answered_rows(tmp_path / "rows"), "training_file")
    examples = [example for row in rows for example in row]
    seen = []
    for budget in (8192, 30):
        monkeypatch.setattr(update, "MICRO_BATCH_TOKENS", budget)
        loaded.model.zero_grad()
        score = supervised.read(loaded, examples, backward=True)
        seen.append((score, [parameter.grad.clone() for parameter in loaded.model.parameters()]))
    (whole, gradients), (split, others) = seen
    assert (split.loss, split.accuracy) == pytest.approx((whole.loss, whole.accuracy), rel=1e-5)
    for one, other in zip(gradients, others, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(one.abs().max()) + 1e-8)


def test_a_resumed_run_is_the_one_that_was_never_interrupted(make: Callable[..., RunSpec], execute: Execute) -> None:
    _, straight = execute(make("straight"))
    interrupted = make("interrupted")
    recorder = Recorder(lambda line: recorder.channel.stop() if isinstance(line, wire.Checkpoint) else None)
    code, first = execute(interrupted, recorder)
    assert code == ExitCode.STOPPED
    again = interrupted.model_copy(
        update={
            "attempt": 2,
            "checkpoints": first.checkpoints(),
            "output_dir": interrupted.output_dir.with_name("second"),
        }
    )
    code, second = execute(again)
    assert code == ExitCode.DONE
    assert without_times(first.metrics() | second.metrics()) == without_times(straight.metrics())
    weights = [load_file(result(told).model_path / "model.safetensors") for told in (straight, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_adapters_learn_too_and_resume(make: Callable[..., RunSpec], execute: Execute) -> None:
    spec = make(lora_rank=4, n_steps=20, eval_interval=10, batch_size=9)
    _, straight = execute(spec)
    metrics = straight.metrics()
    assert metrics[20]["full_valid_loss"] < 0.8 * metrics[0]["full_valid_loss"]
    again = spec.model_copy(
        update={
            "attempt": 2,
            "checkpoints": straight.checkpoints()[1:],
            "output_dir": spec.output_dir.with_name("second"),
        }
    )
    _, second = execute(again)
    assert without_times(second.metrics()) == {step: without_times(metrics)[step] for step in range(11, 21)}


def test_without_a_validation_file_nothing_is_evaluated(make: Callable[..., RunSpec], execute: Execute) -> None:
    code, told = execute(make(valid=False))
    assert code == ExitCode.DONE
    assert list(told.metrics()) == [1, 2, 3, 4]
    assert all(data["full_valid_loss"] is None for data in told.metrics().values())
    assert len(told.checkpoints()) == 2


def test_rows_that_are_too_long_are_all_named(make: Callable[..., RunSpec], execute: Execute) -> None:
    spec = make()
    long = tiny.write_answered_rows(spec.training_path, [(1, 2), (10**20, 10**20), (3, 4), (10**21, 10**21)])
    shutil.copy(long, spec.training_path.with_name("copy"))
    code, told = execute(spec)
    assert code == ExitCode.USER_ERROR
    failure = told.failure()
    assert (failure.code, failure.param) == ("invalid_file", "training_file")
    assert "line 2: the conversation has" in failure.message
    assert "line 4" in failure.message
    assert "line 1:" not in failure.message


def test_memory_that_does_not_suffice_is_told_before_the_first_step(
    make: Callable[..., RunSpec], execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(batch_size=2)
    tiny.write_answered_rows(spec.training_path, [(1, 1), (2, 2), (10**9, 10**9), (3, 3)])
    asked: list[int] = []

    def read(loaded: policy.Policy, examples: list[conversations.Example], *, backward: bool) -> supervised.Score:
        asked.append(max(example.tokens for example in examples))
        raise MemoryError

    monkeypatch.setattr(supervised, "read", read)
    code, told = execute(spec)
    assert (code, told.failure().code) == (ExitCode.USER_ERROR, "out_of_memory")
    assert "Shorten the longest conversations" in told.failure().message
    # The template, the first turn, both numbers, their sum and its end.
    assert asked == [len("u1+1=a3e") + len(f"u{10**9}+{10**9}=a{2 * 10**9}")]
    assert told.metrics() == {}


def test_a_loss_that_is_not_finite_names_the_methods_field(
    make: Callable[..., RunSpec], execute: Execute, tmp_path: Path
) -> None:
    broken = tiny.model("qwen3")
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    tiny.make_tokenizer().save_pretrained(tmp_path / "broken")
    code, told = execute(make(model_path=tmp_path / "broken"))
    failure = told.failure()
    assert (code, failure.code) == (ExitCode.USER_ERROR, "non_finite_loss")
    assert failure.param == "method.supervised.hyperparameters.learning_rate"


@pytest.mark.parametrize(
    ("schedule", "rates"), [("constant", [0.5, 1.0, 1.0, 1.0, 1.0]), ("linear", [0.5, 1.0, 0.75, 0.5, 0.25])]
)
def test_the_learning_rate_rises_and_then_stays_or_falls(schedule: str, rates: list[float]) -> None:
    asked = SupervisedHyperparameters.model_validate(
        {"learning_rate": 1.0, "n_steps": 5, "warmup_steps": 2, "schedule": schedule}
    )
    h = resolve(asked, training_rows=8)
    assert [supervised.learning_rate(h, step) for step in range(1, 6)] == pytest.approx(rates)


def test_every_attempt_tells_the_template_the_jobs_time_and_values(
    make: Callable[..., RunSpec], execute: Execute, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "told"
    shutil.copytree(base, folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{{ strftime_now('%Y') }}{{ limit }}{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    spec = make(model_path=folder, n_steps=4, chat_template_kwargs={"limit": 7})
    spec = spec.model_copy(update={"now": datetime(2024, 2, 3, tzinfo=UTC)})
    begins = tokenizer("20247")["input_ids"]
    _, told = execute(spec)
    for made in (*told.checkpoints(), result(told).model_path.parent):
        assert chat_template.remembered(made / "model") == {"limit": 7}
    again = spec.model_copy(update={"checkpoints": told.checkpoints()[1:], "output_dir": tmp_path / "again"})
    for each in (spec, again):
        rows = supervised.prepare(each, each.job.method, Recorder().channel, Clock()).train_rows  # type: ignore[arg-type]
        assert all(example.token_ids[: len(begins)] == begins for row in rows for example in row)


def test_values_that_the_template_never_reads_end_the_run(make: Callable[..., RunSpec], execute: Execute) -> None:
    code, told = execute(make(chat_template_kwargs={"thinking": True}))
    assert code == ExitCode.USER_ERROR
    failure = told.failure()
    assert failure.code == "invalid_chat_template_kwargs"
    assert failure.param == "method.supervised.hyperparameters.chat_template_kwargs"
    assert "It reads: none." in failure.message
