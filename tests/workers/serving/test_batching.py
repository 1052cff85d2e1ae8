"""Continuous batching gives each request what it would get alone, whatever joins and leaves meanwhile."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from service.inference.wire import Sampling
from tests.workers.serving import tiny
from tests.workers.training import tiny as families
from workers.demo import make_tokenizer
from workers.serving.host import adapters
from workers.serving.host.batching import BatchingEngine
from workers.serving.host.engine import Engine, Key, Request, RequestRefusedError

PROMPTS = [[40, 41, 42], [50] * 30, [60, 61], [70, 71, 72, 73, 74, 75], [80] * 11]


def request(name: str, prompt: list[int], tokens: int, adapter: Path | None = None, **sampling: Any) -> Request:
    return Request([Key(name, 0)], prompt, Sampling(**{"temperature": 0, "seed": 1, **sampling}), tokens, adapter)


def run(engine: Engine, said: dict[str, list[int]] | None = None) -> dict[str, list[int]]:
    """The tokens of every choice, by its question's name."""
    said = {} if said is None else said
    while engine.busy:
        for token in engine.step():
            said.setdefault(token.key.question, []).append(token.id)
    return said


def generated(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    out = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
    return out[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny.model()


def engine_of(model: PreTrainedModel) -> BatchingEngine:
    known = tiny.tokenizer()
    return BatchingEngine(model, known, [known.eos_token_id])


@pytest.mark.parametrize("family", families.CONFIGS)
def test_greedy_is_what_generate_says_for_every_architecture(family: str) -> None:
    model, known = families.model(family), make_tokenizer()
    engine = BatchingEngine(model, known, [known.eos_token_id])
    prompts = {"a": [6, 7, 8], "b": [9, 10, 11, 12, 13], "c": [7] * 9}
    for name, prompt in prompts.items():
        engine.add(request(name, prompt, 12))
    assert run(engine) == {name: generated(model, prompt, 12) for name, prompt in prompts.items()}


def test_requests_that_join_and_leave_do_not_disturb_each_other(model: PreTrainedModel) -> None:
    engine = engine_of(model)
    said: dict[Any, Any] = {}
    for number, prompt in enumerate(PROMPTS):
        engine.add(request(str(number), prompt, 10 + 7 * number))
        for _ in range(4):
            for token in engine.step():
                said.setdefault(token.key.question, []).append(token.id)
    run(engine, said)
    assert said == {str(number): generated(model, prompt, 10 + 7 * number) for number, prompt in enumerate(PROMPTS)}


def test_a_seed_gives_the_same_among_others_as_alone(model: PreTrainedModel) -> None:
    def sampled(names: Iterable[str]) -> dict[str, list[int]]:
        engine = engine_of(model)
        for name in names:
            engine.add(request(name, PROMPTS[int(name)], 20, temperature=1.0, top_p=0.9, seed=int(name)))
        return run(engine)

    together = sampled("01234")
    assert all(sampled(name)[name] == together[name] for name in "024")


def test_a_dropped_request_says_nothing_more(model: PreTrainedModel) -> None:
    engine = engine_of(model)
    for number, prompt in enumerate(PROMPTS[:3]):
        engine.add(request(str(number), prompt, 30))
    engine.step()
    engine.drop([Key("1", 0)])
    assert run(engine).keys() == {"0", "2"}
    engine.add(request("3", PROMPTS[3], 30))
    engine.drop([Key("3", 0)])
    assert not engine.busy


def test_the_most_likely_tokens_are_those_of_the_model(model: PreTrainedModel) -> None:
    engine = engine_of(model)
    engine.add(request("a", PROMPTS[0], 1, logprobs=4, temperature=2.0, logit_bias={33: 50.0}))
    (token,) = engine.step()
    expected = model(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    assert token.id == 33
    assert token.logprob == pytest.approx(expected[33].item(), abs=1e-4)
    assert [id for id, _ in token.top] == expected.topk(4).indices.tolist()


def test_a_nucleus_leaves_unlikely_tokens_out(model: PreTrainedModel) -> None:
    likely = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1).sort(descending=True)
    inside = likely.indices[: int((likely.values.cumsum(-1) < 0.5).sum()) + 1].tolist()
    engine = engine_of(model)
    for seed in range(40):
        engine.add(request(str(seed), PROMPTS[0], 1, temperature=1.0, top_p=0.5, seed=seed))
    assert {ids[0] for ids in run(engine).values()} <= set(inside)


def adapter(folder: Path, seed: int) -> tuple[Path, PreTrainedModel]:
    """A LoRA adapter that changes something, and its base with it merged in."""
    base = tiny.model()
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(folder)
    return folder, adapted.merge_and_unload()


def test_adapters_take_turns_on_one_base(tmp_path: Path) -> None:
    engine, expected = engine_of(tiny.model()), {"base": generated(tiny.model(), PROMPTS[0], 15)}
    engine.add(request("base", PROMPTS[0], 15))
    for name, seed in (("a", 1), ("b", 2)):
        folder, merged = adapter(tmp_path / name, seed)
        expected[name] = generated(merged, PROMPTS[0], 15)
        engine.add(request(name, PROMPTS[0], 15, folder))
    assert run(engine) == expected
    assert len({tuple(ids) for ids in expected.values()}) == 3
    engine.add(request("base", PROMPTS[0], 15))
    assert run(engine)["base"] == expected["base"]


def test_adapters_that_nobody_uses_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "KEPT", 1)
    engine, base = engine_of(tiny.model()), generated(tiny.model(), PROMPTS[0], 8)
    for seed in (1, 2, 3, 1):
        folder, merged = adapter(tmp_path / str(seed), seed)
        engine.add(request("a", PROMPTS[0], 8, folder))
        engine.add(request("base", PROMPTS[0], 8))
        assert run(engine) == {"a": generated(merged, PROMPTS[0], 8), "base": base}


def test_a_folder_that_is_no_adapter_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(RequestRefusedError):
        engine_of(model).add(request("a", PROMPTS[0], 5, tmp_path))


def test_the_precision_is_that_of_the_weights(tmp_path: Path) -> None:
    tiny.model().to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    engine = engine_of(loaded)
    engine.add(request("a", PROMPTS[1], 12))
    assert run(engine)["a"] == generated(loaded, PROMPTS[1], 12)
