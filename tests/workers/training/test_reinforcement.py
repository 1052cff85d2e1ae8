"""Whole runs of a tiny model: what they say, where they go on from, and how they end."""

import errno
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.exc import Unsupported
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder
from troll.advantages import ESTIMATORS
from troll.objectives import OBJECTIVES
from workers import wire
from workers.rollouts.engine import NonFiniteLogitsError
from workers.rollouts.errors import EngineDiedError
from workers.training import checkpoint
from workers.wire import ExitCode

MakeSpec = Callable[..., RunSpec]
Execute = Callable[..., tuple[int, Recorder]]


class Killed(BaseException):
    """Ends a run as a power cut does: nothing that follows in it happens."""


def killed_at(step: int) -> Recorder:
    def on_line(line: wire.Line) -> None:
        if isinstance(line, wire.Progress) and line.step == step:
            raise Killed

    return Recorder(on_line)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def result_of(recorder: Recorder) -> wire.Result:
    line = recorder.lines[-1]
    assert isinstance(line, wire.Result)
    return line


def attempt(spec: RunSpec, number: int, checkpoints: list[Path]) -> RunSpec:
    """The next attempt at the job of ``spec``."""
    return spec.model_copy(
        update={
            "attempt": number,
            "checkpoints": checkpoints,
            "output_dir": spec.output_dir.with_name(f"attempt-{number}"),
        }
    )


def test_a_run_ends_with_a_model_that_transformers_loads(make_spec: MakeSpec, execute: Execute) -> None:
    code, recorder = execute(make_spec())
    result = result_of(recorder)
    assert (code, result.step) == (ExitCode.DONE, 4)
    assert result.trained_tokens > 0
    AutoModelForCausalLM.from_pretrained(result.model_path)
    assert AutoTokenizer.from_pretrained(result.model_path).chat_template


def test_training_changes_the_weights(make_spec: MakeSpec, execute: Execute, base: Path) -> None:
    _, recorder = execute(make_spec(n_steps=1))
    after, before = weights(result_of(recorder).model_path), weights(base)
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("learning_rate", "lora_rank", "told"), [(1e-8, 0, True), (1e-8, 4, True), (0.01, 0, False)])
def test_a_result_whose_weights_hardly_moved_is_told_of(
    make_spec: MakeSpec, execute: Execute, tmp_path: Path, learning_rate: float, lora_rank: int, told: bool
) -> None:
    folder = tiny.save(tmp_path / "model", "qwen3", dtype=torch.bfloat16)
    spec = make_spec(model_path=folder, n_steps=1, learning_rate=learning_rate, lora_rank=lora_rank)
    _, recorder = execute(spec)
    events = [line for line in recorder.lines if isinstance(line, wire.Event) and line.key == "weights-unchanged"]
    shares = [event.data["weights_unchanged"] for event in events if event.data]
    assert [0.95 < share <= 1 for share in shares] == ([True] if told else [])


SETTINGS: list[dict[str, Any]] = [
    *({"objective": name} for name in OBJECTIVES),
    *({"advantage": name} for name in ESTIMATORS),
    {"ratio": "sequence"},
    {"entropy_coefficient": 0.01, "support": "old", "tail": "mass"},
    {"epochs": 3, "schedule": "cosine", "warmup_steps": 1},
    {"mask_truncated": True, "overlong_buffer": 2, "max_completion_tokens": 4},
    {"kl_coefficient": 0.1},
    {"kl_coefficient": 0.1, "kl_in": "reward", "lora_rank": 2},
    {"advantage": "gae", "group_size": 1, "critic_warmup_steps": 1},
    {"advantage": "gae", "lora_rank": 2, "kl_coefficient": 0.1, "kl_in": "reward", "epochs": 2},
]


@pytest.mark.parametrize("asked", SETTINGS, ids=lambda asked: ",".join(map(str, asked.values())))
def test_every_setting_trains_and_a_run_goes_on_as_if_it_had_not_stopped(
    make_spec: MakeSpec, execute: Execute, asked: dict[str, Any]
) -> None:
    asked = {"learning_rate": 0.01, "eval_interval": 1, **asked}
    code, whole = execute(make_spec(**asked))
    assert code == ExitCode.DONE
    cut = killed_at(2)
    spec = make_spec(**asked)
    with pytest.raises(Killed):
        execute(spec, cut)
    _, rest = execute(attempt(spec, 2, cut.checkpoints()))
    told = tiny.without_times(whole.metrics())
    assert tiny.without_times(rest.metrics()).items() <= told.items()
    assert any(each["troll"].get("grad_norm", 0) > 0 for each in told.values())
    left, right = (weights(result_of(each).model_path) for each in (whole, rest))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
@pytest.mark.parametrize("objective", ["troll", "clip", "dppo"])
def test_every_family_trains(
    make_spec: MakeSpec, execute: Execute, tmp_path: Path, family: str, objective: str
) -> None:
    folder = tiny.save(tmp_path / "model", family)
    code, recorder = execute(make_spec(model_path=folder, objective=objective, n_steps=1))
    assert code == ExitCode.DONE
    numbers = recorder.metrics()[1]["troll"]
    assert math.isfinite(numbers["policy_loss"])
    assert numbers["grad_norm"] > 0


def test_every_step_is_told_once_and_in_order(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(n_steps=3, eval_interval=2))
    keys = [line.key for line in recorder.lines if isinstance(line, wire.Event)]
    assert keys == ["started", "step-0", "preflight", "step-1", "step-2", "checkpoint-2", "step-3", "checkpoint-3"]
    assert [line.step for line in recorder.lines if isinstance(line, wire.Progress)] == [0, 1, 2, 3]
    started, checked, *created = recorder.messages()
    assert (started, created) == ("Training started", ["Checkpoint created at step 2", "Checkpoint created at step 3"])
    assert checked.startswith("Checked before training")


def test_the_model_is_evaluated_before_training_at_the_interval_and_at_the_end(
    make_spec: MakeSpec, execute: Execute
) -> None:
    _, recorder = execute(make_spec(n_steps=3, eval_interval=2))
    evaluated = {step: data["full_valid_mean_reward"] is not None for step, data in recorder.metrics().items()}
    assert evaluated == {0: True, 1: False, 2: True, 3: True}


@pytest.mark.parametrize("settings", [{}, {"max_staleness": 1}], ids=["on policy", "one step ahead"])
def test_the_last_step_takes_what_is_left_of_the_epochs(
    make_spec: MakeSpec, execute: Execute, settings: dict[str, int]
) -> None:
    code, recorder = execute(make_spec(n_steps="auto", n_epochs=1, batch_size=8, eval_interval=1, **settings))
    assert code == ExitCode.DONE
    counts = {step: data["scores"]["train_reward_count"] for step, data in recorder.metrics().items()}
    assert counts == {0: 0, 1: 32, 2: 4}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_staleness": 1},
        {"max_staleness": 1, "lora_rank": 2},
        {"max_staleness": 3},
        {"max_staleness": 3, "partial_rollouts": False},
        {"max_staleness": 16},
    ],
    ids=[
        "on policy",
        "one step ahead",
        "adapters, one step ahead",
        "partial",
        "three steps ahead",
        "as far as it goes",
    ],
)
def test_a_resumed_run_is_the_run_that_was_never_interrupted(
    make_spec: MakeSpec, execute: Execute, settings: dict[str, Any]
) -> None:
    asked = {"n_steps": 5, "eval_interval": 2} | settings
    spec = make_spec(**asked)
    _, whole = execute(make_spec("whole", **asked))
    first = killed_at(3)
    with pytest.raises(Killed):
        execute(spec, first)
    code, second = execute(attempt(spec, 2, first.checkpoints()))

    assert code == ExitCode.DONE
    assert list(second.metrics()) == [3, 4, 5]
    told = tiny.without_times(first.metrics() | second.metrics())
    assert told == tiny.without_times(whole.metrics())
    assert tiny.without_times(first.metrics())[3] == tiny.without_times(second.metrics())[3]
    assert result_of(second).metrics == result_of(whole).metrics
    ours, theirs = weights(result_of(second).model_path), weights(result_of(whole).model_path)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "Training resumed from the checkpoint of step 2" in second.messages()


def test_resuming_is_exact_with_weights_stored_in_bfloat16(
    make_spec: MakeSpec, execute: Execute, tmp_path: Path
) -> None:
    base = tiny.save(tmp_path / "model", dtype=torch.bfloat16)
    asked: dict[str, Any] = {"model_path": base, "n_steps": 3, "eval_interval": 2}
    _, whole = execute(make_spec("whole", **asked))
    spec, first = make_spec(**asked), killed_at(2)
    first.on_line = lambda line: _kill_after_checkpoint(line)
    with pytest.raises(Killed):
        execute(spec, first)
    _, second = execute(attempt(spec, 2, first.checkpoints()))
    assert tiny.without_times(second.metrics())[3] == tiny.without_times(whole.metrics())[3]


def _kill_after_checkpoint(line: wire.Line) -> None:
    if isinstance(line, wire.Checkpoint):
        raise Killed


def test_a_run_killed_before_its_result_only_writes_the_model(make_spec: MakeSpec, execute: Execute) -> None:
    _, first = execute(make_spec())
    code, second = execute(attempt(make_spec(), 2, first.checkpoints()))
    assert (code, second.metrics()) == (ExitCode.DONE, {})
    assert result_of(second).metrics == result_of(first).metrics


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(make_spec: MakeSpec, execute: Execute) -> None:
    spec = make_spec()
    _, first = execute(spec)
    newest, older = first.checkpoints()
    (newest / "state" / "trainer.json").unlink()
    _, second = execute(attempt(spec, 2, [newest, older]))
    (warning,) = (line for line in second.lines if isinstance(line, wire.Event) and line.level == "warn")
    assert "step-000004 was passed over: state/trainer.json is missing" in warning.message
    assert list(second.metrics()) == [3, 4]


def test_a_run_that_is_told_to_stop_ends_with_a_checkpoint(make_spec: MakeSpec, execute: Execute) -> None:
    def stop(line: wire.Line) -> None:
        if isinstance(line, wire.Progress) and line.step == 1:
            recorder.channel.stop()

    recorder = Recorder(stop)
    code, _ = execute(make_spec(), recorder)
    assert code == ExitCode.STOPPED
    (folder,) = recorder.checkpoints()
    checkpoint.verify(folder)
    assert (folder.name, list(recorder.metrics())) == ("step-000001", [0, 1])


def test_stopping_where_a_checkpoint_is_writes_no_other(make_spec: MakeSpec, execute: Execute) -> None:
    spec = make_spec()
    _, first = execute(spec)
    stopped = Recorder()
    stopped.on_line = lambda line: stopped.channel.stop()
    code, _ = execute(attempt(spec, 2, first.checkpoints()[1:]), stopped)
    assert (code, stopped.checkpoints()) == (ExitCode.STOPPED, [])


@pytest.mark.parametrize("max_staleness", [1, 2])
def test_a_run_that_stops_with_answers_ahead_goes_on_with_them(
    make_spec: MakeSpec, execute: Execute, max_staleness: int
) -> None:
    asked = {"n_steps": 4, "eval_interval": 4, "max_staleness": max_staleness}
    _, whole = execute(make_spec("whole", **asked))
    stopped = Recorder()
    stopped.on_line = lambda line: stopped.channel.stop() if getattr(line, "key", None) == "step-2" else None
    spec = make_spec(**asked)
    code, _ = execute(spec, stopped)
    assert (code, list(stopped.metrics())) == (ExitCode.STOPPED, [0, 1, 2])
    _, rest = execute(attempt(spec, 2, stopped.checkpoints()))
    assert tiny.without_times(stopped.metrics() | rest.metrics()) == tiny.without_times(whole.metrics())


def test_the_next_answers_are_sampled_while_a_step_is_trained(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.rollouts.transformers import TransformersEngine
    from workers.training.optim import update

    sampling, extend, train = threading.Semaphore(0), TransformersEngine.extend, update.update_policy

    def announced(engine: TransformersEngine, *arguments: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        sampling.release()
        return extend(engine, *arguments)

    def patient(*arguments: Any) -> update.Numbers:
        if arguments[-1] < 3:
            assert sampling.acquire(timeout=30), "nothing is sampled ahead"
        return train(*arguments)

    monkeypatch.setattr(TransformersEngine, "extend", announced)
    monkeypatch.setattr(update, "update_policy", patient)
    code, recorder = execute(make_spec(n_steps=3, max_staleness=1))
    assert code == ExitCode.DONE
    stale = [recorder.metrics()[step]["troll"]["staleness_max"] for step in (1, 2, 3)]
    assert stale == [0, 1, 1]


def test_answers_ahead_are_of_the_weights_before_the_step(make_spec: MakeSpec, execute: Execute) -> None:
    from workers.answers import AnswerReader
    from workers.data.prompts import load_prompts
    from workers.modeling import policy
    from workers.training.data import order
    from workers.training.sampling import prefetched

    spec = make_spec(n_steps=3, eval_interval=1, max_staleness=1)
    _, recorder = execute(spec)
    _, second, first = recorder.checkpoints()
    before = policy.load(first / "model", torch.device("cpu"))
    prompts = load_prompts(spec.training_path, before.tokenizer, before.context_length, "training_file")
    asked = [prompts[row] for row in order.rows_of_step(3, spec.job.seed, len(prompts), 4)]
    (sample, *_), *_ = prefetched.read(second / "state", asked, AnswerReader(before.tokenizer), version=2)
    assert sample.rollout.version == 1
    (scores,) = before.score([sample.prompt.token_ids + sample.rollout.token_ids])
    assert sample.rollout.log_probs == pytest.approx(scores[len(sample.prompt.token_ids) - 1 :], abs=1e-4)


def test_answers_go_on_with_newer_weights_until_the_step_that_learns_from_them(
    make_spec: MakeSpec, execute: Execute
) -> None:
    _, recorder = execute(make_spec(n_steps=7, eval_interval=7, max_staleness=3))
    told = {step: data["troll"] for step, data in recorder.metrics().items() if step}
    assert [told[step]["staleness_max"] for step in told] == [0, 1, 2, 3, 3, 3, 3]
    partial = [told[step]["partial_rollout_fraction"] for step in told]
    assert partial[:2] == [0, 0]
    assert min(partial[2:]) > 0.5


@pytest.mark.parametrize("objective", ["troll", "clip"])
def test_the_samplers_distributions_can_be_the_old_policy(
    make_spec: MakeSpec, execute: Execute, objective: str
) -> None:
    asked: dict[str, Any] = {"n_steps": 2, "eval_interval": 2, "mini_batches": 2, "objective": objective}
    _, trainers = execute(make_spec("trainer", **asked))
    _, samplers = execute(make_spec("sampler", **asked, old_policy="sampler"))
    ours, theirs = (recorder.metrics()[1] for recorder in (samplers, trainers))
    # Before the first push the two are one policy, read in two ways.
    assert ours["troll"]["ratio"] == pytest.approx(theirs["troll"]["ratio"], abs=1e-5)
    assert ours["troll"]["grad_norm"] == pytest.approx(theirs["troll"]["grad_norm"], rel=1e-3)


def test_the_trust_region_can_be_around_stale_policies(make_spec: MakeSpec, execute: Execute) -> None:
    asked: dict[str, Any] = {"n_steps": 6, "eval_interval": 6, "mini_batches": 1, "learning_rate": 1e-2}
    _, recorder = execute(make_spec(**asked, max_staleness=4, old_policy="sampler"))
    told = {step: data["troll"] for step, data in recorder.metrics().items() if step}
    assert told[1]["kl_before"] == pytest.approx(0, abs=1e-6)
    assert min(told[step]["kl_before"] for step in (3, 4, 5, 6)) > 1e-5


def test_without_partial_rollouts_each_answer_is_of_one_policy(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(n_steps=4, eval_interval=4, max_staleness=2, partial_rollouts=False))
    told = [data["troll"] for step, data in recorder.metrics().items() if step]
    assert [each["staleness_mean"] for each in told] == [0, 1, 2, 2]
    assert [each["partial_rollout_fraction"] for each in told] == [0, 0, 0, 0]


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_an_engine_that_dies_while_it_samples_leaves_the_checkpoints(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch, max_staleness: int
) -> None:
    from workers.rollouts.transformers import TransformersEngine

    stream, extend = TransformersEngine.stream, TransformersEngine.extend

    def dying(answers: Any, version: int) -> Any:
        for number, answer in enumerate(answers):
            if version == 3 and number == 1:
                raise EngineDiedError("vLLM died at work: worker is gone The checkpoints so far are kept.")
            yield answer

    def dying_stream(engine: TransformersEngine, prompts: Any, samples: int, sampling: Any) -> Any:
        return dying(stream(engine, prompts, samples, sampling), engine.version if samples > 1 else 0)

    monkeypatch.setattr(TransformersEngine, "stream", dying_stream)
    monkeypatch.setattr(
        TransformersEngine, "extend", lambda engine, *asked: dying(extend(engine, *asked), engine.version)
    )
    code, recorder = execute(make_spec(n_steps=6, eval_interval=1, max_staleness=max_staleness))
    assert (code, recorder.failure().code) == (ExitCode.UNAVAILABLE, "engine_unavailable")
    assert "died at work" in recorder.failure().message
    assert [folder.name for folder in recorder.checkpoints()] == ["step-000002", "step-000001"]
    for folder in recorder.checkpoints():
        checkpoint.verify(folder)


def test_memory_that_runs_out_while_sampling_ahead_is_explained_as_such(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.rollouts.transformers import TransformersEngine

    def short_of_memory(engine: TransformersEngine, *asked: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TransformersEngine, "extend", short_of_memory)
    code, recorder = execute(make_spec(max_staleness=1))
    assert (code, recorder.failure().code) == (ExitCode.USER_ERROR, "out_of_memory")
    assert recorder.failure().message.startswith("Out of memory while sampling.")


def test_a_tokenizer_without_a_pad_token_trains(make_spec: MakeSpec, execute: Execute, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    code, recorder = execute(make_spec(model_path=folder, n_steps=1))
    assert code == ExitCode.DONE
    assert AutoTokenizer.from_pretrained(result_of(recorder).model_path).pad_token is None


def test_the_same_seed_gives_the_same_run_and_another_another(make_spec: MakeSpec, execute: Execute) -> None:
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        spec = make_spec(name, n_steps=2)
        job = spec.job.model_copy(update={"seed": seed})
        runs.append(tiny.without_times(execute(spec.model_copy(update={"job": job}))[1].metrics()))
    assert runs[0] == runs[1] != runs[2]


def test_metrics_have_the_names_of_the_api(make_spec: MakeSpec, execute: Execute) -> None:
    grader = {"type": "multi", "graders": {"exact": tiny.EXACT, "close": tiny.CLOSE}, "calculate_output": "close"}
    _, recorder = execute(make_spec(grader=grader, n_steps=2, eval_interval=2, eval_samples=2))
    before, _, last = (recorder.metrics()[step] for step in range(3))
    assert before["train_mean_reward"] is None
    assert (last["step"], last["total_steps"]) == (2, 2)
    for name in ("train_mean_reward", "full_valid_mean_reward", "completion_tokens_mean", "reward_std"):
        assert last[name] > 0, name
    for name in ("full_valid_mean_parse_error", "mean_unresponsive_rewards", "reasoning_tokens_mean"):
        assert last[name] == 0, name
    assert 0 <= last["frac_reward_zero_std"] < 1
    scores = last["scores"]
    assert (scores["train_reward_mean"], scores["valid_reward_mean"]) == (
        last["train_mean_reward"],
        last["full_valid_mean_reward"],
    )
    assert [(row["name"], row["type"]) for row in scores["graders"]] == [
        ("exact", "string_check"),
        ("close", "text_similarity"),
    ]
    assert scores["graders"][1]["train_reward_mean"] == pytest.approx(last["train_mean_reward"])
    assert {row["name"] for row in last["errors"]["graders"]} == {"exact", "close", "multi"}
    assert last["errors"]["graders"][0]["valid_other_error_count"] == 0
    assert {"sampling", "training", "eval", "full_iteration"} <= last["timing"]["step"].keys()
    assert last["timing"]["graders"][0]["train_execution_latency_mean"] > 0
    assert last["completions"]["max_length"] <= 5


def test_metrics_have_trolls_numbers(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(n_steps=1, learning_rate=0.05, kl_bound=0.01))
    numbers = recorder.metrics()[1]["troll"]
    assert numbers["kl_before_max"] > 0.01 >= numbers["kl_after_max"] - 1e-6
    assert 0 < numbers["fraction_projected"] < 1
    names = {"beta", "kept_mass", "ratio", "ratio_max", "entropy", "grad_norm", "lr", "policy_loss", "regression_loss"}
    assert names <= numbers.keys()
    assert numbers["mismatch_abs_max"] < 1e-4


def test_metrics_are_plain_json(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(n_steps=1))
    for data in recorder.metrics().values():
        assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_samples_of_the_evaluation_are_shown(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(n_steps=1))
    shown = recorder.metrics()[0]["samples"]
    assert [sample["prompt"] for sample in shown] == ["7+3=", "7+308=", "12+25="]
    assert all(isinstance(sample["answer"], str) and 0 <= sample["reward"] <= 1 for sample in shown)


def test_samples_that_cannot_be_graded_are_counted_and_left_out(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import graders

    real = graders.build

    class Moody:
        def __init__(self, definition: Any, settings: Any) -> None:
            self.inner = real(definition, settings)

        def grade(self, samples: list[graders.GraderSample]) -> list[graders.Grade]:
            grades = self.inner.grade(samples)
            failed = graders.Grade(None, error="other_error", detail="moody")
            return [failed if number % 4 == 1 else each for number, each in enumerate(grades)]

    monkeypatch.setattr(graders, "build", Moody)
    code, recorder = execute(make_spec(n_steps=1))
    data = recorder.metrics()[1]
    assert code == ExitCode.DONE
    assert data["mean_unresponsive_rewards"] == 0.25
    assert data["errors"]["graders"][0]["train_other_error_count"] == 4
    assert data["troll"]["tokens"] < data["completion_tokens_mean"] * 16


def test_a_grader_that_always_fails_ends_the_run(make_spec: MakeSpec, execute: Execute) -> None:
    grader = tiny.EXACT | {"reference": "{{item.nothing}}"}
    code, recorder = execute(make_spec(grader=grader))
    assert code == ExitCode.GRADER_ERROR
    assert recorder.failure().code == "grader_failed"
    assert "invalid_variable_error" in recorder.failure().message


@pytest.mark.parametrize(
    ("error", "code", "exit_code", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", ExitCode.USER_ERROR, "max_completion_tokens"),
        (MemoryError(), "out_of_memory", ExitCode.USER_ERROR, "max_completion_tokens"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
            ExitCode.USER_ERROR,
            "max_completion_tokens",
        ),
        (Unsupported("a loop"), "compilation_failed", ExitCode.USER_ERROR, "Set torch_compile to never. (a loop)"),
        (NonFiniteLogitsError(), "non_finite_logits", ExitCode.USER_ERROR, "Lower learning_rate"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", ExitCode.NO_ROOM, "The disk is full"),
        (ZeroDivisionError("surprise"), "internal_error", ExitCode.BUG, "while training: ZeroDivisionError: surprise"),
    ],
)
def test_what_goes_wrong_is_explained(
    make_spec: MakeSpec,
    execute: Execute,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
    exit_code: int,
    says: str,
) -> None:
    from workers.training.optim import update

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(update, "update_policy", fail)
    ended, recorder = execute(make_spec())
    assert (ended, recorder.failure().code) == (exit_code, code)
    assert says in recorder.failure().message


def test_a_full_disk_keeps_earlier_checkpoints(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint._write_manifest

    def fill(folder: Path, step: int) -> None:
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, step)

    monkeypatch.setattr(checkpoint, "_write_manifest", fill)
    spec = make_spec()
    code, recorder = execute(spec)
    assert (code, recorder.failure().code) == (ExitCode.NO_ROOM, "disk_full")
    assert [folder.name for folder in (spec.output_dir / "checkpoints").iterdir()] == ["step-000002"]


def test_a_model_that_cannot_be_loaded_is_the_users_to_change(
    make_spec: MakeSpec, execute: Execute, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code, recorder = execute(make_spec(model_path=tmp_path / "empty"))
    assert (code, recorder.failure().param) == (ExitCode.USER_ERROR, "model")


def test_a_prompt_without_room_for_an_answer_is_named(make_spec: MakeSpec, execute: Execute) -> None:
    spec = make_spec()
    assert spec.validation_path is not None
    with spec.validation_path.open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "1" * 60}], "answer": "1"}))
    code, recorder = execute(spec)
    assert (code, recorder.failure().param) == (ExitCode.USER_ERROR, "validation_file")
    assert f"line {len(tiny.ROWS[::2]) + 1}" in recorder.failure().message


def ask_for_seven(spec: RunSpec) -> None:
    """The same answer to every row, which a model this small can learn in a second."""
    for path in filter(None, (spec.training_path, spec.validation_path)):
        rows = [json.loads(line) | {"answer": "7"} for line in path.read_text().splitlines()]
        path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_learning_works(make_spec: MakeSpec, execute: Execute, max_staleness: int) -> None:
    asked = {"n_steps": 30, "eval_interval": 30, "batch_size": 8, "group_size": 8, "max_completion_tokens": 2}
    spec = make_spec(grader=tiny.EXACT, max_staleness=max_staleness, **asked)
    ask_for_seven(spec)
    _, recorder = execute(spec)
    before, after = (recorder.metrics()[step]["full_valid_mean_reward"] for step in (0, 30))
    assert before < 0.5 < 0.9 < after


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 8, "learning_rate": 0.02}], ids=["all weights", "adapters"])
def test_learning_works_with_a_critic(make_spec: MakeSpec, execute: Execute, settings: dict[str, Any]) -> None:
    asked = {"n_steps": 14, "eval_interval": 14, "batch_size": 8, "group_size": 8, "max_completion_tokens": 2}
    spec = make_spec(grader=tiny.EXACT, advantage="gae", critic_learning_rate=0.01, **asked, **settings)
    ask_for_seven(spec)
    _, recorder = execute(spec)
    told = [recorder.metrics()[step] for step in range(1, 15)]
    rewards = [each["train_mean_reward"] for each in told]
    assert max(rewards[:2]) < 0.1 < 0.7 < sum(rewards[-3:]) / 3
    assert max(each["troll"].get("explained_variance", 0) for each in told) > 0.1
    assert abs(told[-1]["troll"]["value_mean"] - told[-1]["troll"]["return_mean"]) < 0.4


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_critic_that_warms_up_learns_alone(make_spec: MakeSpec, execute: Execute, base: Path, lora_rank: int) -> None:
    asked = {"advantage": "gae", "n_steps": 13, "eval_interval": 12, "critic_warmup_steps": 12}
    spec = make_spec(**asked, critic_learning_rate=3e-3, batch_size=8, lora_rank=lora_rank)
    stopped = Recorder()
    stopped.on_line = lambda line: stopped.channel.stop() if isinstance(line, wire.Checkpoint) else None
    execute(spec, stopped)
    told = [stopped.metrics()[step]["troll"] for step in range(1, 13)]
    assert "grad_norm" not in told[0].keys() | told[-1].keys()
    assert sum(each["value_loss"] for each in told[-3:]) < 0.7 * sum(each["value_loss"] for each in told[:3])
    assert told[0]["explained_variance"] == 0 < max(each["explained_variance"] for each in told[-3:])
    kept, before = weights(stopped.checkpoints()[0] / "model"), weights(base)
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_a_model_that_does_not_change_is_evaluated_the_same_each_time(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(learning_rate=1e-30, eval_interval=1, eval_samples=3, n_steps=2))
    told = recorder.metrics()
    first = (told[0]["full_valid_mean_reward"], told[0]["validation"], told[0]["samples"])
    assert told[0]["validation"]["answers_per_row"] == 3
    for step in (1, 2):
        assert (told[step]["full_valid_mean_reward"], told[step]["validation"], told[step]["samples"]) == first
