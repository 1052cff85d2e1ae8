"""The vLLM engine for real, on the CPU: a tiny random Qwen3 with tied embeddings, whole weights pushed from memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import troll
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from workers.rollouts.engine import Begun, EngineRequest, NonFiniteLogitsError, Rollout, Sampling
from workers.rollouts.errors import EngineDiedError, EngineUnavailableError, PromptsTooLongError, StaleWeightsError
from workers.rollouts.probe import FLOAT32, WeightsOutOfSyncError, compare
from workers.rollouts.top_log_probs import sparse_rows
from workers.rollouts.vllm import EngineSettings, VLLMEngine
from workers.rollouts.vllm.start import _arguments

VOCABULARY, CONTEXT, STOP, TOP = 320, 160, 1, 64
PROMPTS = [[5, 6, 7], [200, 3, 19, 44, 8, 101], [77]]
PROBE = [[5, 6, 7, 100, 200, 33, 12], [9, 8, 301, 4]]
SAMPLING = Sampling(temperature=0.8, max_tokens=12, seed=11)


def model(seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=STOP,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).float().eval()


@pytest.fixture(scope="module")
def trained() -> Qwen3ForCausalLM:
    return model(seed=0)


@pytest.fixture(scope="module")
def started(trained: Qwen3ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    folder = tmp_path_factory.mktemp("model")
    trained.save_pretrained(folder)
    settings = EngineSettings(CONTEXT, "float32", top_log_probs=TOP, cpu_cache_bytes=16 << 20)
    engine = VLLMEngine(folder, [STOP], settings)
    yield engine
    engine.close()


@pytest.fixture
def engine(started: VLLMEngine, trained: Qwen3ForCausalLM) -> VLLMEngine:
    """The engine with the weights of ``trained``, whatever the test before pushed."""
    started.sync(trained.state_dict().items())
    return started


@torch.no_grad()
def next_log_probs(of: Qwen3ForCausalLM, ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """``[len(ids), V]``"""
    logits: torch.Tensor = of(torch.tensor([list(ids)])).logits[0]
    return (logits / temperature).log_softmax(-1)


def scores(of: Qwen3ForCausalLM, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    return [
        next_log_probs(of, ids)[:-1].gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1).tolist()
        for ids in sequences
    ]


def answer_log_probs(of: Qwen3ForCausalLM, prompt: Sequence[int], rollout: Rollout) -> torch.Tensor:
    """``[n, V]`` at the sampling temperature."""
    whole = next_log_probs(of, [*prompt, *rollout.token_ids], SAMPLING.temperature)
    return whole[len(prompt) - 1 : -1]


def tokens(groups: list[list[Rollout]]) -> list[list[list[int]]]:
    return [[rollout.token_ids for rollout in group] for group in groups]


def test_the_same_seed_samples_the_same_answers(engine: VLLMEngine) -> None:
    assert tokens(engine.generate(PROMPTS, 3, SAMPLING)) == tokens(engine.generate(PROMPTS, 3, SAMPLING))


def test_samples_of_a_prompt_and_other_seeds_differ(engine: VLLMEngine) -> None:
    groups = tokens(engine.generate(PROMPTS, 3, SAMPLING))
    other = tokens(engine.generate(PROMPTS, 3, Sampling(SAMPLING.temperature, SAMPLING.max_tokens, seed=12)))
    answers = [tuple(answer) for group in groups + other for answer in group]
    assert len(set(answers)) == len(answers)


def test_a_sample_does_not_depend_on_how_many_are_drawn(engine: VLLMEngine) -> None:
    few, many = tokens(engine.generate(PROMPTS, 1, SAMPLING)), tokens(engine.generate(PROMPTS, 4, SAMPLING))
    assert few == [group[:1] for group in many]


def test_groups_are_handed_over_while_others_are_sampled_and_the_rest_can_be_given_up(engine: VLLMEngine) -> None:
    prompts, sampling = [[token] for token in range(100, 140)], Sampling(1.0, max_tokens=100, seed=1)
    whole = engine.generate(prompts, 1, sampling)
    with closing(engine.stream(prompts, 1, sampling)) as stream:
        i, group = next(stream)
        assert tokens([group]) == tokens([whole[i]])
        assert len(group[0].token_ids) < max(len(rollout.token_ids) for (rollout,) in whole)
        with pytest.raises(RuntimeError, match="while the engine sampled"):
            engine.sync(model(seed=1).state_dict().items())
    engine.sync(model(seed=0).state_dict().items())
    assert tokens(engine.generate(prompts, 1, sampling)) == tokens(whole)


def test_log_probs_of_sampled_tokens_are_the_models_at_the_sampling_temperature(
    engine: VLLMEngine, trained: Qwen3ForCausalLM
) -> None:
    for prompt, group in zip(PROMPTS, engine.generate(PROMPTS, 2, SAMPLING), strict=True):
        for rollout in group:
            expected = answer_log_probs(trained, prompt, rollout)
            sampled = expected.gather(-1, torch.tensor(rollout.token_ids).unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(torch.tensor(rollout.log_probs), sampled, atol=1e-4, rtol=0)


def test_64_most_likely_tokens_are_the_models(engine: VLLMEngine, trained: Qwen3ForCausalLM) -> None:
    for prompt, (rollout,) in zip(PROMPTS, engine.generate(PROMPTS, 1, SAMPLING), strict=True):
        assert rollout.top is not None
        assert rollout.top.ids.shape == rollout.top.log_probs.shape == (len(rollout.token_ids), TOP)
        expected = answer_log_probs(trained, prompt, rollout)
        named = expected.gather(-1, torch.from_numpy(rollout.top.ids).long())
        torch.testing.assert_close(torch.from_numpy(rollout.top.log_probs), named, atol=1e-4, rtol=0)
        torch.testing.assert_close(named, expected.topk(TOP).values, atol=1e-4, rtol=0)


def test_top_log_probs_become_the_rows_of_the_trainers_logits(engine: VLLMEngine, trained: Qwen3ForCausalLM) -> None:
    rollouts = [group[0] for group in engine.generate(PROMPTS, 1, SAMPLING)]
    sampled = sparse_rows(rollouts, VOCABULARY)
    logits = torch.cat(
        [answer_log_probs(trained, prompt, rollout) for prompt, rollout in zip(PROMPTS, rollouts, strict=True)]
    )
    ids = torch.tensor([token for rollout in rollouts for token in rollout.token_ids])
    ours = troll.sparsify(logits, ids)
    torch.testing.assert_close(sampled.dense(), ours.dense(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sampled.kept_mass, ours.kept_mass, atol=1e-4, rtol=0)
    torch.testing.assert_close(sampled.token_log_probs, ours.token_log_probs, atol=1e-4, rtol=0)


def test_greedy_takes_the_most_likely_token_and_reports_it_at_temperature_1(
    engine: VLLMEngine, trained: Qwen3ForCausalLM
) -> None:
    ((rollout,),) = engine.generate(PROMPTS[:1], 1, Sampling(temperature=0, max_tokens=6, seed=0))
    expected = next_log_probs(trained, [*PROMPTS[0], *rollout.token_ids])[len(PROMPTS[0]) - 1 : -1]
    assert rollout.token_ids == expected.argmax(-1).tolist()
    torch.testing.assert_close(torch.tensor(rollout.log_probs), expected.amax(-1), atol=1e-4, rtol=0)


def test_an_answer_ends_with_the_stop_token_and_only_there(engine: VLLMEngine) -> None:
    groups = engine.generate([[token] for token in range(100, 140)], 8, Sampling(1.0, max_tokens=40, seed=1))
    rollouts = [rollout for group in groups for rollout in group]
    stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert stopped
    assert all(rollout.token_ids[-1] == STOP for rollout in stopped)
    assert not any(STOP in rollout.token_ids[:-1] for rollout in rollouts)
    assert all(len(rollout.token_ids) == 40 for rollout in rollouts if rollout.finish_reason == "length")


def test_an_answer_ends_where_the_context_does(engine: VLLMEngine) -> None:
    ((rollout,),) = engine.generate([list(range(2, CONTEXT - 3))], 1, Sampling(0, max_tokens=40, seed=0))
    assert (len(rollout.token_ids), rollout.finish_reason) == (5, "length")


def test_prompts_that_fill_the_context_are_refused_by_row(engine: VLLMEngine) -> None:
    with pytest.raises(PromptsTooLongError, match=r"1 \(160 tokens\), 2 \(200 tokens\).*context of 160") as refusal:
        engine.generate([[5], [5] * CONTEXT, [5] * 200], 1, SAMPLING)
    assert refusal.value.rows == [1, 2]


@pytest.mark.parametrize("prompt", [[], [5, VOCABULARY], [-1]])
def test_ids_outside_the_vocabulary_are_refused_by_row(engine: VLLMEngine, prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="row 1"):
        engine.generate([[5], prompt], 1, SAMPLING)


def test_a_temperature_that_vllm_would_change_is_refused(engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match="temperature"):
        engine.generate(PROMPTS, 1, Sampling(temperature=0.001, max_tokens=2, seed=0))


@pytest.mark.parametrize("named", ["state_dict", "named_parameters"])
def test_pushed_weights_are_sampled_from_with_tied_embeddings_named_or_not(engine: VLLMEngine, named: str) -> None:
    updated = model(seed=1)
    before = engine.score(PROBE)
    weights = updated.state_dict().items() if named == "state_dict" else updated.named_parameters()
    engine.sync(weights)
    compare(engine.score(PROBE), scores(updated, PROBE), FLOAT32)
    with pytest.raises(WeightsOutOfSyncError):
        compare(before, scores(updated, PROBE), FLOAT32)
    for prompt, (rollout,) in zip(PROMPTS, engine.generate(PROMPTS, 1, SAMPLING), strict=True):
        expected = answer_log_probs(updated, prompt, rollout)
        sampled = expected.gather(-1, torch.tensor(rollout.token_ids).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(torch.tensor(rollout.log_probs), sampled, atol=1e-4, rtol=0)


def test_each_push_raises_the_version_that_rollouts_carry(engine: VLLMEngine) -> None:
    before = engine.version
    assert engine.sync(model(seed=1).state_dict().items()) == before + 1
    ((rollout,),) = engine.generate(PROMPTS[:1], 1, SAMPLING)
    assert rollout.version == before + 1


def test_a_cached_prefix_of_older_weights_is_not_read(engine: VLLMEngine, trained: Qwen3ForCausalLM) -> None:
    prompt = list(range(2, 142))  # longer than a block of the cache, which is 128 tokens on a CPU
    engine.generate([prompt], 1, SAMPLING)
    updated = model(seed=1)
    engine.sync(updated.state_dict().items())
    ((rollout,),) = engine.generate([prompt], 1, SAMPLING)
    sampled = answer_log_probs(updated, prompt, rollout).gather(-1, torch.tensor(rollout.token_ids).unsqueeze(-1))
    torch.testing.assert_close(torch.tensor(rollout.log_probs), sampled.squeeze(-1), atol=1e-4, rtol=0)


def test_a_push_that_lacks_a_weight_stops_sampling(engine: VLLMEngine, trained: Qwen3ForCausalLM) -> None:
    weights = [(name, value) for name, value in trained.state_dict().items() if "layers.1.mlp.down_proj" not in name]
    with pytest.raises(StaleWeightsError, match="down_proj"):
        engine.sync(weights)
    with pytest.raises(StaleWeightsError, match="did not complete"):
        engine.generate(PROMPTS, 1, SAMPLING)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(
            lambda name, value: value.flip(0) if name.endswith("lm_head.weight") else value, id="output layer"
        ),
        pytest.param(
            lambda name, value: value * 1.01 if "layers.1.mlp" in name else value, id="one layer by 1 percent"
        ),
    ],
)
def test_the_probe_catches_a_push_that_went_wrong(
    engine: VLLMEngine, trained: Qwen3ForCausalLM, broken: Callable[[str, torch.Tensor], torch.Tensor]
) -> None:
    engine.sync([(name, broken(name, value)) for name, value in trained.state_dict().items()])
    with pytest.raises(WeightsOutOfSyncError, match=r"differ by .* nats"):
        compare(engine.score(PROBE), scores(trained, PROBE), FLOAT32, engine.version)


def test_weights_that_are_not_finite_are_reported(engine: VLLMEngine, trained: Qwen3ForCausalLM) -> None:
    weights = {name: value.clone() for name, value in trained.state_dict().items()}
    weights["model.norm.weight"].fill_(torch.nan)
    engine.sync(weights.items())
    with pytest.raises(NonFiniteLogitsError):
        engine.generate(PROMPTS, 1, SAMPLING)


def test_the_process_keeps_its_threads_and_its_childrens_environment(engine: VLLMEngine) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    assert "LD_PRELOAD" not in os.environ
    assert "LOCAL_WORLD_SIZE" not in os.environ


def test_arrays_of_top_log_probs_are_compact(engine: VLLMEngine) -> None:
    ((rollout,),) = engine.generate(PROMPTS[:1], 1, SAMPLING)
    assert rollout.top is not None
    assert (rollout.top.ids.dtype, rollout.top.log_probs.dtype) == (np.dtype(np.int32), np.dtype(np.float32))


def test_top_log_probs_can_be_left_out_and_change_no_answer(engine: VLLMEngine) -> None:
    with_them = engine.generate(PROMPTS, 2, SAMPLING)
    without = engine.generate(PROMPTS, 2, replace(SAMPLING, top=False))
    assert tokens(without) == tokens(with_them)
    assert all(rollout.top is None for group in without for rollout in group)
    with pytest.raises(ValueError, match="rollouts \\[0"):
        sparse_rows([group[0] for group in without], VOCABULARY)


def test_pieces_are_as_likely_as_the_model_finds_them_behind_what_was_there(
    engine: VLLMEngine, trained: Qwen3ForCausalLM
) -> None:
    begun = [
        Begun(PROMPTS[0], [], 4, seed=1),
        Begun(PROMPTS[0], [9, 8, 7], 5, seed=2),
        Begun(PROMPTS[1], [6], 3, seed=3),
    ]
    pieces = dict(engine.extend(begun, SAMPLING.temperature))
    assert dict(engine.extend(begun, SAMPLING.temperature))[1].token_ids == pieces[1].token_ids
    for number, each in enumerate(begun):
        piece = pieces[number]
        assert len(piece.token_ids) == each.max_tokens or piece.finish_reason == "stop"
        expected = answer_log_probs(trained, each.context, piece)
        chosen = expected.gather(-1, torch.tensor(piece.token_ids).unsqueeze(-1)).squeeze(-1)
        assert piece.log_probs == pytest.approx(chosen.tolist(), abs=1e-3)
        assert piece.top is not None
        assert piece.top.ids.shape == (len(piece.token_ids), TOP)


def test_a_folder_without_a_model_does_not_start_and_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"context_length=160, cpu_cache_bytes.*rollout_engine"):
        VLLMEngine(tmp_path, [STOP], EngineSettings(CONTEXT, "float32"))


@pytest.fixture
def sharing(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[VLLMEngine]:
    """The engine as on a GPU that it shares. On a CPU vLLM that sleeps does no work, but keeps its memory."""
    monkeypatch.setattr(engine, "_settings", replace(engine._settings, shared_gpu=True))
    yield engine
    engine.wake()


def test_an_engine_that_slept_samples_as_before_once_weights_were_pushed(
    sharing: VLLMEngine, trained: Qwen3ForCausalLM
) -> None:
    before = sharing.generate(PROMPTS, 2, SAMPLING)
    sharing.sleep()
    assert sharing.asleep
    assert sharing._core.is_sleeping()
    sharing.wake()
    assert not sharing._core.is_sleeping()
    sharing.sync(trained.state_dict().items())
    assert tokens(sharing.generate(PROMPTS, 2, SAMPLING)) == tokens(before)


def test_an_engine_that_sleeps_or_was_only_woken_samples_nothing(
    sharing: VLLMEngine, trained: Qwen3ForCausalLM
) -> None:
    sharing.sleep()
    with pytest.raises(StaleWeightsError, match="gave its memory to the trainer"):
        sharing.generate(PROMPTS, 1, SAMPLING)
    with pytest.raises(RuntimeError, match="while the engine slept"):
        sharing.sync(trained.state_dict().items())
    sharing.wake()
    with pytest.raises(StaleWeightsError, match="nothing to sample from"):
        sharing.generate(PROMPTS, 1, SAMPLING)


def test_an_engine_is_not_put_to_sleep_while_it_samples(sharing: VLLMEngine) -> None:
    groups = sharing.stream(PROMPTS, 1, SAMPLING)
    next(groups)
    with pytest.raises(RuntimeError, match="to sleep while it sampled"):
        sharing.sleep()
    groups.close()
    assert not sharing.asleep


def test_an_engine_that_shares_no_gpu_stays_awake(engine: VLLMEngine) -> None:
    engine.sleep()
    assert not engine.asleep
    assert engine.generate(PROMPTS, 1, SAMPLING)


@pytest.mark.parametrize(("rank", "level"), [(0, 2), (8, 1)])
def test_weights_that_are_not_pushed_are_kept(
    sharing: VLLMEngine, monkeypatch: pytest.MonkeyPatch, rank: int, level: int
) -> None:
    levels: list[int] = []
    settings = replace(sharing._settings, lora_rank=rank, lora_modules=("q_proj",) if rank else ())
    monkeypatch.setattr(sharing, "_settings", settings)
    monkeypatch.setattr(sharing._engine, "sleep", lambda level: levels.append(level))
    monkeypatch.setattr(sharing._engine, "wake_up", lambda: True)
    sharing.sleep()
    assert levels == [level]


@pytest.mark.parametrize("call", ["sleep", "wake_up"])
def test_memory_that_cannot_be_handed_over_ends_the_engine_with_what_to_change(
    sharing: VLLMEngine, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def hand_over() -> None:
        sharing.sleep()
        sharing.wake()

    with monkeypatch.context() as patch:
        patch.setattr(sharing._engine, call, fail)
        with pytest.raises(EngineDiedError, match=r"CUDA out of memory.*TROLL_ROLLOUT_MEMORY_SHARE, which is 0\.45"):
            hand_over()
    with pytest.raises(EngineDiedError, match="takes no more work"):
        sharing.generate(PROMPTS, 1, SAMPLING)
    sharing._dead = None


class Started(Exception):
    """vLLM would start, with these settings."""


@pytest.mark.parametrize(
    ("device", "max_staleness", "sleeps"), [("cuda", 0, True), ("cuda", 1, False), ("cpu", 0, False), ("cpu", 1, False)]
)
def test_it_can_sleep_on_a_gpu_where_nothing_is_sampled_ahead(
    trained: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch, device: str, max_staleness: int, sleeps: bool
) -> None:
    def start(folder: Path, settings: EngineSettings) -> None:
        raise Started(settings)

    monkeypatch.setattr("workers.rollouts.vllm.engine.start", start)
    policy: Any = SimpleNamespace(
        device=torch.device(device), model=trained, context_length=64, adapter=None, folder=Path("x"), stop_ids=[1]
    )
    asked = resolve(Hyperparameters(rollout_engine="vllm", max_staleness=max_staleness), training_rows=8)
    with pytest.raises(Started) as started:
        VLLMEngine.of_job(EngineRequest(policy, asked, [[5, 6]], 8, memory_share=0.3))
    (settings,) = started.value.args
    arguments = _arguments(Path("x"), settings, cpu=False)
    assert (arguments["enable_sleep_mode"], arguments["gpu_memory_utilization"]) == (sleeps, 0.3)


def test_a_failure_at_work_kills_the_engine_with_what_to_change(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("worker is gone")

    with monkeypatch.context() as patch:
        patch.setattr(engine._core, "get_output", fail)
        with pytest.raises(EngineDiedError, match=r"worker is gone.*checkpoints so far are kept"):
            engine.generate(PROMPTS, 1, SAMPLING)
    with pytest.raises(EngineDiedError, match="takes no more work: worker is gone"):
        engine.generate(PROMPTS, 1, SAMPLING)
