"""The GPU memory that a job needs at least."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core.db import transaction
from service.jobs import repository
from service.jobs.spec import JobSpec
from service.jobs.stored import read_specification
from service.models import size
from service.submission import needs
from tests import factories

ROWS = Path(__file__).parents[1] / "jobs" / "rows" / "4" / "specifications"
BILLION = 1_000_000_000


def spec(method: str = "reinforcement", **hyperparameters: object) -> JobSpec:
    stored = json.loads((ROWS / f"{method}.json").read_text())
    stored["method"]["hyperparameters"] |= hyperparameters
    return read_specification(stored)


def needed(asked: JobSpec, *, processes: int = 1, tensor_parallel: int = 1) -> float:
    """In GB, of a model of a billion parameters."""
    found = needs.gpu_bytes(BILLION, asked, memory_share=0.4, tensor_parallel=tensor_parallel, processes=processes)
    return found / BILLION


def test_all_weights_or_adapters() -> None:
    assert needed(spec()) == 16
    assert needed(spec(lora_rank=8)) == 2
    assert needed(spec("supervised")) == 16
    assert needed(spec("supervised", lora_rank=8)) == 2


def test_a_critic_and_a_reference_are_models_as_well() -> None:
    gae: dict[str, Any] = {"advantage": "gae"}
    assert needed(spec(**gae)) == 32
    assert needed(spec(**gae, lora_rank=8)) == 4
    assert needed(spec(kl_coefficient=0.1)) == 20
    assert needed(spec(kl_coefficient=0.1, lora_rank=8)) == 2
    assert needed(spec(**gae, kl_coefficient=0.1, kl_in="reward")) == 36


def test_what_is_only_evaluated_is_read_in_float32() -> None:
    assert needed(spec("evaluation")) == 4
    assert needed(spec("evaluation", rollout_engine="vllm")) == 5


def test_a_sampler_with_its_own_weights_has_its_share() -> None:
    vllm: dict[str, Any] = {"rollout_engine": "vllm", "lora_rank": 8}
    assert needed(spec(**vllm)) == 5
    assert needed(spec(**vllm), processes=4) == 20
    assert needed(spec(**vllm), processes=4, tensor_parallel=4) == 5
    assert needed(spec(rollout_engine="vllm")) == 16
    assert needed(spec(rollout_engine="vllm", max_staleness=1)) == pytest.approx(16 / 0.6)


def test_what_is_trained_while_it_samples_is_there_twice() -> None:
    assert needed(spec(max_staleness=2)) == 20
    assert needed(spec(max_staleness=2, lora_rank=8)) == 2


def test_nothing_is_needed_of_what_is_not_known() -> None:
    assert needs.gpu_bytes(None, spec(), memory_share=0.4, tensor_parallel=1, processes=1) == 0


Weights = Callable[..., Path]


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    """``weights("a", w=[2, 3])`` writes a file of tensors of these shapes, whose numbers are not there."""

    def write(name: str, **shapes: list[int]) -> Path:
        header = {tensor: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for tensor, shape in shapes.items()}
        text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        return tmp_path

    return write


def test_parameters_of_all_files_are_counted(weights: Weights) -> None:
    weights("model-1", embed=[100, 8], norm=[8], scale=[])
    assert size.parameters(weights("model-2", head=[10, 8])) == 800 + 8 + 1 + 80


def test_a_file_that_changed_is_read_again(weights: Weights) -> None:
    assert size.parameters(weights("model", w=[3])) == 3
    assert size.parameters(weights("model", w=[5, 100])) == 500


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\xff" * 8, (10).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"[]",
     (8).to_bytes(8, "little") + b'{"w": 1}'],
)  # fmt: skip
def test_what_cannot_be_read_has_no_size(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert size.parameters(tmp_path) is None


def test_a_folder_without_weights_has_no_size(tmp_path: Path) -> None:
    assert size.parameters(tmp_path) is None
    assert size.parameters(tmp_path / "missing") is None


def test_a_job_knows_what_it_needs(client: TestClient, models_dir: Path, weights: Weights) -> None:
    model = factories.offer_model(models_dir, "needs/memory")
    folder = weights("model", w=[1000, 1000])
    (models_dir / model / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    id = factories.create_job(client, model)["id"]
    with transaction("troll_worker") as session:
        job = repository.get(session, id)
        assert job is not None
        assert job.gpu_bytes == 16_000_000
