"""One organisation's many answers beside another's few, in one model's process."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from service.inference import exchange, queue
from service.inference.wire import Question, Sampling
from service.settings import settings
from tests.workers.serving import tiny
from tests.workers.serving.test_batching import adapter, generated
from tests.workers.training import tiny as families
from workers.demo import make_tokenizer
from workers.modeling.decoder import Decoder
from workers.serving.host import batching
from workers.serving.host.batching import BatchingEngine
from workers.serving.host.engine import Key, Request, Token

NEVER_ENDING = {tiny.tokenizer().eos_token_id: -100.0}


class Clock:
    """Time that passes only while the model computes: a fixed part for each step, and one for each row."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        forward = Decoder._forward

        def timed(decoder: Decoder, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            self.now += 2 + ids.shape[0]
            return forward(decoder, ids, positions)

        patch.setattr(Decoder, "_forward", timed)

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny.model()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def engine_of(model: PreTrainedModel, clock: Clock, tokenizer: Any = None) -> BatchingEngine:
    known = tokenizer or tiny.tokenizer()
    return BatchingEngine(model, known, [known.eos_token_id], clock)


def ask(engine: BatchingEngine, name: str, tokens: int = 1000, prompt: list[int] | None = None, n: int = 1) -> None:
    """The organisation is the name's first letter."""
    sampling = Sampling(temperature=0, seed=1, n=n, logit_bias=NEVER_ENDING)
    keys = [Key(name, choice) for choice in range(n)]
    engine.add(Request(keys, prompt or [40, 41, 42], sampling, tokens, organization=name[0]))


def names(tokens: list[Token]) -> list[str]:
    return [token.key.question for token in tokens]


def time_of_b(engine: BatchingEngine, clock: Clock, tokens: int) -> float:
    """How long B's answer of so many tokens takes from when it is asked for."""
    began = clock.now
    ask(engine, "b", tokens)
    while not any(token.end for token in engine.step() if token.key.question == "b"):
        pass
    return clock.now - began


def test_a_few_are_hardly_slower_beside_many(model: PreTrainedModel, clock: Clock) -> None:
    times = []
    for others in (1, 40):
        engine = engine_of(model, clock)
        for number in range(others):
            ask(engine, f"a{number}")
        engine.step()
        engine.step()
        times.append(time_of_b(engine, clock, 40))
    beside_one, beside_many = times
    assert beside_many < 2 * beside_one


def test_many_choices_count_as_much_as_many_requests(model: PreTrainedModel, clock: Clock) -> None:
    beside_one = engine_of(model, clock)
    ask(beside_one, "a")
    beside_many = engine_of(model, clock)
    ask(beside_many, "a", n=40)
    beside_one.step()
    beside_many.step()
    assert time_of_b(beside_many, clock, 40) < 2 * time_of_b(beside_one, clock, 40)


def test_the_oldest_of_each_go_on_in_every_step(model: PreTrainedModel, clock: Clock) -> None:
    engine = engine_of(model, clock)
    for name in ("a0", "a1", "a2", "a3", "b0", "c0"):
        ask(engine, name)
    # Until the model has run, nobody knows whether prompts can be read together.
    engine.step()
    for _ in range(12):
        assert set(names(engine.step())) >= {"a0", "a1", "b0", "c0"}
    engine.drop([Key("a0", 0)])
    assert set(names(engine.step())) >= {"a1", "a2", "b0", "c0"}


def test_the_others_get_their_share_of_the_time(model: PreTrainedModel, clock: Clock) -> None:
    engine = engine_of(model, clock)
    for number in range(20):
        ask(engine, f"a{number}")
    ask(engine, "b")
    said, spent = Counter[str](), {True: 0.0, False: 0.0}
    for _ in range(200):
        before = clock.now
        tokens = names(engine.step())
        back = [name for name in tokens if name not in ("a0", "a1", "b")]
        front_time = 2 + 3
        spent[True] += front_time
        spent[False] += clock.now - before - front_time
        said.update(back)
    share = spent[False] / (spent[True] + spent[False])
    assert share == pytest.approx(batching.BACK_SHARE, abs=0.03)
    assert len(said) == 18
    assert len(set(said.values())) == 1


def test_alone_everybody_goes_on_in_every_step(model: PreTrainedModel, clock: Clock) -> None:
    engine = engine_of(model, clock)
    for number in range(20):
        ask(engine, f"a{number}")
    time_of_b(engine, clock, 10)
    for _ in range(40):
        assert len(engine.step()) == 20
    assert len(engine._batches) == 1


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mamba"])
def test_answers_are_the_same_in_front_and_in_the_back(family: str, clock: Clock) -> None:
    model, known = families.model(family), make_tokenizer()
    engine = engine_of(model, clock, known)
    prompts = {"a0": [6, 7, 8], "a1": [9] * 5, "a2": [7] * 9, "a3": [8, 6], "a4": [5] * 14, "b0": [6, 5], "c0": [9, 8]}
    said: dict[str, list[int]] = {}
    for name, prompt in prompts.items():
        sampling = Sampling(temperature=0, seed=1)
        engine.add(Request([Key(name, 0)], prompt, sampling, 8 + 5 * int(name[1]), organization=name[0]))
        for token in engine.step():
            said.setdefault(token.key.question, []).append(token.id)
    while engine.busy:
        for token in engine.step():
            said.setdefault(token.key.question, []).append(token.id)
    assert said == {name: generated(model, prompt, 8 + 5 * int(name[1])) for name, prompt in prompts.items()}


def test_choices_of_one_prompt_that_are_parted_go_on_as_they_would_together(
    model: PreTrainedModel, clock: Clock
) -> None:
    engine = engine_of(model, clock)
    ask(engine, "b", 30)
    ask(engine, "a", 20, prompt=[50] * 9, n=6)
    said: dict[Key, list[int]] = {}
    while engine.busy:
        for token in engine.step():
            said.setdefault(token.key, []).append(token.id)
    alone = engine_of(model, clock)
    ask(alone, "a", 20, prompt=[50] * 9)
    expected = []
    while alone.busy:
        expected += [token.id for token in alone.step()]
    assert all(said[Key("a", choice)] == expected for choice in range(6))


def test_adapters_take_turns_in_the_back_too(clock: Clock, tmp_path: Path) -> None:
    engine = engine_of(tiny.model(), clock)
    folder, merged = adapter(tmp_path / "adapter", 1)
    sampling = Sampling(temperature=0, seed=1)
    ask(engine, "b", 60)
    for number in range(4):
        engine.add(Request([Key(f"a{number}", 0)], [40, 41], sampling, 15, folder, organization="a"))
    said: dict[str, list[int]] = {}
    while engine.busy:
        for token in engine.step():
            said.setdefault(token.key.question, []).append(token.id)
    assert {tuple(said[f"a{number}"]) for number in range(4)} == {tuple(generated(merged, [40, 41], 15))}


def test_one_organization_leaves_room_for_keys_and_values(
    model: PreTrainedModel, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(model, clock)
    monkeypatch.setattr(engine, "_most_tokens", lambda: 400)
    for number in range(20):
        ask(engine, f"a{number}", prompt=[50] * 49)
    engine.step()
    assert len(set(names(engine.step()))) == 6
    ask(engine, "b", prompt=[50] * 49)
    assert "b" in names(engine.step())


def test_rows_have_room_in_all_and_for_each(
    model: PreTrainedModel, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_ROWS", 8)
    engine = engine_of(model, clock)
    for number in range(20):
        ask(engine, f"a{number}")
    engine.step()
    assert len(engine.step()) == 6
    ask(engine, "b", n=2)
    tokens = engine.step()
    assert names(tokens).count("b") == 2


def test_three_hundred_chats_of_one_do_not_hold_up_the_first_of_another(
    model: PreTrainedModel, clock: Clock, own_redis: object
) -> None:
    """From Redis, where they wait, to the last token: what a worker takes, and what its engine does with it."""
    engine, held, ended = engine_of(model, clock), Counter[str](), list[str]()

    async def put(client: Any, id: str) -> None:
        question = Question(
            id=id, model="m", model_path="/m", prompts=["x"], sampling=Sampling(seed=1), organization=id[0]
        )
        await queue.put(client, question, question.model_dump_json().encode())

    async def work(client: Any) -> None:
        """Take what there is room for, and a step."""
        while (found := await queue.take(client, settings().serving_concurrency, held)) is not None:
            question = Question.model_validate_json(found[0])
            held[question.organization] += found[1]
            ask(engine, question.id, 20)
        for token in engine.step():
            if token.end:
                held[token.key.question[0]] -= 1
                ended.append(token.key.question)

    async def case() -> None:
        client = exchange.connect()
        try:
            for number in range(300):
                await put(client, f"a{number}")
            while len(ended) < 40:
                await work(client)
            before = len(ended)
            await put(client, "b")
            while "b" not in ended:
                await work(client)
            assert len(ended) - before <= 5, ended[before:]
        finally:
            await client.aclose()

    asyncio.run(case())
