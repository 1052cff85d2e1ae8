"""Checkpoints of every version are gone on from, and those of a newer release are passed over.

``tests/data/checkpoints/VERSION/KIND`` are checkpoints of step 2 of the tiny model's four, as a release wrote them: of
all weights with answers that were sampled ahead, whole or in part, of adapters, and of adapters with a critic.
"""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder
from workers import wire
from workers.training import checkpoint
from workers.training.__main__ import run_one_job
from workers.wire import ExitCode

KEPT = Path(__file__).parents[2] / "data" / "checkpoints"
ASKED: dict[str, dict[str, Any]] = {
    "ahead": {"max_staleness": 1},
    "partial": {"max_staleness": 3},
    "lora": {"lora_rank": 2},
    "critic": {"advantage": "gae", "lora_rank": 2},
}
KINDS = [path for version in sorted(KEPT.iterdir()) for path in sorted(version.iterdir())]


def go_on(tmp_path: Path, kind: str, *checkpoints: Path) -> Recorder:
    """The job of such a checkpoint, as a second attempt at it."""
    spec = tiny.spec(tmp_path / "run", tiny.save(tmp_path / "base"), **ASKED[kind])
    again = spec.model_copy(update={"attempt": 2, "checkpoints": list(checkpoints)})
    recorder = Recorder()
    path = tmp_path / "run.json"
    path.write_text(again.model_dump_json())
    recorder.channel.starts.put(path)
    assert run_one_job(recorder.channel) == ExitCode.DONE
    return recorder


@pytest.mark.parametrize("kept", KINDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_checkpoints_of_every_version_are_gone_on_from(tmp_path: Path, kept: Path) -> None:
    recorder = go_on(tmp_path, kept.name, kept / "step-000002")
    assert "Training resumed from the checkpoint of step 2" in recorder.messages()
    assert list(recorder.metrics()) == [3, 4]


@pytest.mark.parametrize("kept", KINDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_version_has_one_of_each_kind(kept: Path) -> None:
    checkpoint.verify(kept / "step-000002")
    assert {path.name for path in kept.parent.iterdir()} == ASKED.keys()


def test_the_present_version_is_among_them() -> None:
    assert {int(path.name) for path in KEPT.iterdir()} == set(range(1, checkpoint.VERSION + 1))


@pytest.mark.parametrize("kind", ASKED)
def test_this_release_writes_what_its_version_is_known_to_hold(tmp_path: Path, kind: str) -> None:
    """Where it does not, an older release cannot go on from it: raise ``checkpoint.VERSION`` and keep one of each."""
    kept = KEPT / str(checkpoint.VERSION) / kind / "step-000002"
    newest = go_on(tmp_path, kind, kept).checkpoints()[-1]
    assert _files(newest) - _answers(newest) == _files(kept) - _answers(kept)
    for name in sorted(path for path in _files(kept) - _answers(kept) if path.endswith(".safetensors")):
        ours, theirs = load_file(newest / name), load_file(kept / name)
        assert {key: value.dtype for key, value in ours.items()} == {key: value.dtype for key, value in theirs.items()}
    assert _names(newest) == _names(kept) == {field.name for field in fields(checkpoint.TrainerState)}


def test_one_of_a_newer_release_is_passed_over_and_told(tmp_path: Path) -> None:
    older = KEPT / str(checkpoint.VERSION) / "lora" / "step-000002"
    newer = shutil.copytree(older, tmp_path / "step-000003")
    manifest = json.loads((newer / "manifest.json").read_bytes())
    # What else such a manifest says is not known.
    manifest = {"version": checkpoint.VERSION + 1, "objects": manifest["files"]}
    (newer / "manifest.json").write_text(json.dumps(manifest))
    recorder = go_on(tmp_path, "lora", newer, older)
    (warning,) = (line for line in recorder.lines if isinstance(line, wire.Event) and line.level == "warn")
    told = f"step-000003 was passed over: a newer release wrote it, in version {checkpoint.VERSION + 1}"
    assert told in warning.message
    assert list(recorder.metrics()) == [3, 4]
    assert newer.is_dir()


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _answers(folder: Path) -> set[str]:
    """Files of answers that were sampled ahead: the last step has none."""
    return {name for name in _files(folder) if Path(name).name.startswith("ahead.")}


def _names(folder: Path) -> set[str]:
    return set(json.loads((folder / "state" / "trainer.json").read_bytes()))
