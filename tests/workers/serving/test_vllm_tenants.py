"""With vLLM, how soon an answer comes does not tell a tenant what another has asked: prompts are cached for each."""

from pathlib import Path

import pytest

from service.inference.wire import Sampling
from tests.workers.serving import tiny
from workers.serving.host.engine import Key, Request
from workers.serving.host.vllm import VLLMServingEngine
from workers.serving.lines import Options

PROMPT = list(range(5, 205))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> VLLMServingEngine:
    folder: Path = tmp_path_factory.mktemp("model")
    tiny.save(folder)
    return VLLMServingEngine(folder, Options(model_path=str(folder), engine="vllm", memory_share=0.5))


def tokens_from_cache(engine: VLLMServingEngine, name: str, tenant: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many tokens of the prompt vLLM did not read again."""
    seen: list[int] = []
    step = engine._engine.step

    def noted() -> list[object]:
        outputs = step()
        seen.extend(output.num_cached_tokens or 0 for output in outputs)
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(engine._engine, "step", noted)
        engine.add(Request([Key(name, 0)], PROMPT, Sampling(seed=1), max_tokens=1, tenant=tenant))
        while engine.busy:
            engine.step()
    return max(seen)


def test_a_prompt_is_remembered_for_its_own_tenant_alone(
    engine: VLLMServingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        tokens_from_cache(engine, name, tenant, monkeypatch)
        for name, tenant in (("1", "proj_a"), ("2", "proj_a"), ("3", "proj_b"), ("4", "proj_b"))
    ]
    assert (found[0], found[2]) == (0, 0)
    assert min(found[1], found[3]) >= len(PROMPT) // 2
