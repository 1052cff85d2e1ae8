"""The seccomp profile of the workers' containers, in force: a jail is built under it, and only with its help."""

import json
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest

from tests.workers.graders.jails import first_tier

ROOT = Path(__file__).parents[3]
PROFILE = ROOT / "deploy/seccomp-jail.json"
UNDER_PROFILE = """
import ctypes, json, os, sys

class Compare(ctypes.Structure):
    _fields_ = [("index", ctypes.c_uint), ("op", ctypes.c_int), ("value", ctypes.c_uint64), ("mask", ctypes.c_uint64)]

profile, library, tier = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
seccomp = ctypes.CDLL(library)
seccomp.seccomp_init.restype = ctypes.c_void_p
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
OPERATORS = {"SCMP_CMP_LT": 2, "SCMP_CMP_EQ": 4, "SCMP_CMP_GT": 7}
context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(ERRNO | profile["defaultErrnoRet"])))
for rule in profile["syscalls"]:
    for name in rule["names"]:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue  # Of another machine, or newer than the library.
        arguments = [Compare(a["index"], OPERATORS[a["op"]], a["value"], 0) for a in rule.get("args", [])]
        array = (Compare * len(arguments))(*arguments)
        assert seccomp.seccomp_rule_add_array(context, ALLOW, number, len(arguments), array) == 0, name
assert seccomp.seccomp_load(context) == 0

from service.graders.kinds.python import Python
from service.graders.settings import GraderSettings
from workers.graders import JailError, GraderSample, build

grader = Python(type="python", name="p", source="def grade(sample, item):\\n    return 0.5\\n")
try:
    print(build(grader, GraderSettings(jail=tier)).grade([GraderSample({}, "x")])[0].reward)
except JailError as error:
    print("no jail:", error)
"""


def graded_under(profile: dict[str, object]) -> str:
    library = find_library("seccomp")
    if library is None:
        pytest.skip("libseccomp, which puts the profile in force here, is not installed")
    command = [sys.executable, "-c", UNDER_PROFILE, json.dumps(profile), library, first_tier()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_jail_is_built_and_holds_under_the_profile() -> None:
    assert graded_under(json.loads(PROFILE.read_text())) == "0.5"


@pytest.mark.parametrize("call", ["unshare", "mount_setattr"])
def test_without_a_call_that_the_profile_adds_there_is_no_jail(call: str) -> None:
    profile = json.loads(PROFILE.read_text())
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name != call]
    assert graded_under(profile).startswith("no jail:")
