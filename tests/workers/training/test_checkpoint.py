"""A checkpoint is whole or it is not there, and nothing is lost on the way through it."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.workers.training import tiny
from workers.modeling import export, policy
from workers.modeling.policy import Policy
from workers.training import checkpoint
from workers.training.checkpoint import TrainerState

CPU = torch.device("cpu")


def load(folder: Path) -> Policy:
    return policy.load(folder, CPU)


def optimizer_of(loaded: Policy) -> torch.optim.AdamW:
    return torch.optim.AdamW(loaded.model.parameters(), lr=1e-3, fused=True)


def trained(loaded: Policy) -> torch.optim.AdamW:
    """An optimizer that has moved the weights off their stored values."""
    optimizer = optimizer_of(loaded)
    for _ in range(2):
        loaded.model(torch.arange(6).unsqueeze(0), use_cache=False).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.fixture
def saved(tmp_path: Path, base: Path) -> Path:
    """An intact checkpoint of step 3."""
    loaded = load(base)
    folder = checkpoint.folder_of(tmp_path, 3)
    checkpoint.save(folder, loaded, trained(loaded), TrainerState(3, 40, 1.5, {"valid_reward_mean": 0.5}))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    loaded = load(tiny.save(tmp_path / "model", dtype=dtype))
    optimizer, trainer = trained(loaded), TrainerState(3, 40, 0.1 + 0.2, {"kl_before": 0.1, "x": None})
    checkpoint.save(tmp_path / "step", loaded, optimizer, trainer)
    draw = torch.rand(3)

    again = load(tmp_path / "step" / checkpoint.MODEL)
    fresh = optimizer_of(again)
    assert checkpoint.restore(tmp_path / "step", again, fresh) == trainer
    assert torch.equal(torch.rand(3), draw)
    for old, new in zip(loaded.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(old, new)
        assert optimizer.state[old].keys() == fresh.state[new].keys()
        assert all(torch.equal(optimizer.state[old][kind], fresh.state[new][kind]) for kind in fresh.state[new])


def test_its_model_is_a_folder_that_transformers_loads(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved / "model")
    assert AutoTokenizer.from_pretrained(saved / "model").decode(model(torch.tensor([[5]])).logits[0, 0].argmax())


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_an_exported_model_is_the_one_in_memory(tmp_path: Path, family: str) -> None:
    loaded = load(tiny.save(tmp_path / "model", family))
    trained(loaded)
    export.export(loaded, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(8).unsqueeze(0)
    assert torch.equal(again(ids).logits, loaded.model(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_model_holds_what_its_base_holds(tmp_path: Path, dtype: torch.dtype) -> None:
    export.export(load(tiny.save(tmp_path / "model", dtype=dtype)), tmp_path / "out")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "model"))
    assert ours.keys() == theirs.keys()  # The output layer, tied to the embeddings, is stored once.


def test_an_exported_model_has_the_dtype_and_settings_of_its_base(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "model", dtype=torch.bfloat16)
    # transformers refuses to write this, as a sampling temperature without sampling has no effect.
    settings = '{"eos_token_id": [1, 4], "do_sample": false, "temperature": 0.3}'
    (base / "generation_config.json").write_text(settings)
    export.export(load(base), tmp_path / "out")
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(tmp_path / "out").parameters()} == {torch.bfloat16}
    assert (tmp_path / "out" / "generation_config.json").read_text() == settings


def test_nothing_in_it_can_run_code(saved: Path) -> None:
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jinja"}


@pytest.mark.parametrize("last", ["write_model", "_write_state", "_write_manifest", "finish"])
def test_a_crash_on_the_way_leaves_no_checkpoint(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    loaded = load(base)
    optimizer = trained(loaded)
    monkeypatch.setattr(export if last in ("write_model", "finish") else checkpoint, last, crash)
    # What a killed process leaves behind, which cannot clean up after itself.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    folder = checkpoint.folder_of(tmp_path, 3)
    with pytest.raises(Crash):
        checkpoint.save(folder, loaded, optimizer, TrainerState(3))
    assert list(folder.parent.glob("step-*")) == []
    assert checkpoint.find_usable([folder])[0] is None


def test_a_failed_attempt_leaves_no_files_behind(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    loaded = load(base)
    monkeypatch.setattr(checkpoint, "_write_manifest", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(checkpoint.folder_of(tmp_path, 3), loaded, trained(loaded), TrainerState(3))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_of_the_same_step_is_replaced(saved: Path, base: Path) -> None:
    loaded = load(base)
    checkpoint.save(saved, loaded, optimizer_of(loaded), TrainerState(3, 99))
    checkpoint.verify(saved)
    assert checkpoint.restore(saved, loaded, optimizer_of(loaded)).trained_tokens == 99


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "name",
    ["model/model.safetensors", "state/tensors/shard-00001-model-00001-of-00001.safetensors", "state/trainer.json"],
)
@pytest.mark.parametrize("harm", [flip_a_bit, cut_short, Path.unlink])
def test_damage_to_any_file_is_noticed(saved: Path, name: str, harm: object) -> None:
    assert callable(harm)
    harm(saved / name)
    with pytest.raises(checkpoint.UnusableCheckpointError, match=name):
        checkpoint.verify(saved)


def test_the_newest_intact_checkpoint_is_found(saved: Path, tmp_path: Path) -> None:
    newer, newest, older = (checkpoint.folder_of(tmp_path, step) for step in (4, 5, 2))
    for folder in (newer, newest, older):
        shutil.copytree(saved, folder)
    cut_short(newer / "model" / "model.safetensors")
    (newest / "manifest.json").unlink()
    found, unusable = checkpoint.find_usable([newest, newer, saved, older])
    assert found == saved
    assert list(unusable) == [newest, newer]
    assert "manifest" in unusable[newest]
    assert "model/model.safetensors" in unusable[newer]
