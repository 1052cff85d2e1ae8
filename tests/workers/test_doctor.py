"""What the doctor says of a worker's libraries and of the jail."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from service.contracts.engines import ENGINES
from service.graders.settings import GraderSettings
from workers import doctor
from workers.graders import confinement
from workers.graders.jail import JailError


def only(findings: Any) -> Any:
    (finding,) = findings
    return finding


def test_an_engine_that_is_missing_is_a_fault_where_the_settings_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert {each.state for each in doctor._engines()} == {"warning"}
    monkeypatch.setenv("TROLL_ROLLOUT_ENGINE", "vllm")
    assert [each.state for each in doctor._engines()] == ["fails" if name == "vllm" else "warning" for name in ENGINES]


def test_a_gpu_without_a_compiler_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("CC", raising=False)
    assert [each.state for each in doctor._compiler()] == ["fails"]
    monkeypatch.setenv("CC", "/opt/cc")
    assert [(each.state, each.found) for each in doctor._compiler()] == [("holds", "/opt/cc")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not [*doctor._compiler()]


@pytest.mark.parametrize("breach", [None, "can read the home folder"])
def test_a_jail_that_does_not_hold_is_a_fault(monkeypatch: pytest.MonkeyPatch, breach: str | None) -> None:
    def ensure(_: GraderSettings) -> None:
        if breach:
            raise JailError(f"code in it {breach}")

    monkeypatch.setattr(confinement, "ensure_confined", ensure)
    monkeypatch.setattr(doctor, "grader_settings", lambda: GraderSettings(jail="unshare"))
    found = only(doctor._jail())
    assert (found.state, (breach or "") in found.found) == ("fails" if breach else "holds", True)


def test_a_jail_that_is_off_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "grader_settings", lambda: GraderSettings(jail="off"))
    assert only(doctor._jail()).state == "warning"


def test_a_cgroup_that_cannot_be_used_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    monkeypatch.setattr(doctor, "grader_settings", lambda: GraderSettings(jail_cgroup=tmp_path / "plain"))
    assert only(doctor._groups()).state == "fails"


def test_system_calls_can_be_filtered_here() -> None:
    assert only(doctor._seccomp()).state == "holds"
