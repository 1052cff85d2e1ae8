"""The compose file: valid by the specification's schema, true to the code, and without secrets of its own."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest
import yaml
from sqlalchemy import make_url

from service.core.db import LOGINS
from service.embedded import postgres
from service.embedded.servers import Servers
from service.settings import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
JAILERS = ("control-worker", "gpu-worker")
JAILER = ["seccomp=deploy/seccomp-jail.json", "apparmor=unconfined"]
OURS = ("migrate", "api", "beat", "control-worker", "gpu-worker", "serving-worker", "operator")


def seconds(duration: str) -> int:
    return sum(
        int(number) * {"s": 1, "m": 60, "h": 3600}[unit] for number, unit in re.findall(r"(\d+)([smh])", duration)
    )


def test_it_is_valid_compose() -> None:
    schema = json.loads((ROOT / "tests/data/compose_spec.json").read_text())
    errors = jsonschema.Draft201909Validator(schema).iter_errors(COMPOSE)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_the_schema_refuses_a_misspelt_key() -> None:
    schema = json.loads((ROOT / "tests/data/compose_spec.json").read_text())
    broken = {**COMPOSE, "services": {"api": {**COMPOSE["services"]["api"], "helthcheck": {}}}}
    assert not jsonschema.Draft201909Validator(schema).is_valid(broken)


def test_it_runs_every_process_of_the_project() -> None:
    assert set(COMPOSE["services"]) == {*OURS, "postgres", "redis"}


def test_every_secret_has_to_be_given() -> None:
    secrets = [line for line in TEXT.splitlines() if re.search(r"(PASSWORD|PEPPER|WEBHOOK_KEY)", line) and ": " in line]
    assert len(secrets) >= 14
    without = [line for line in secrets if not re.search(r"\$\{TROLL_\w+:\?|\$\$REDIS_PASSWORD", line)]
    assert without == []


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_locked_down(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true", *(JAILER if name in JAILERS else [])]
    assert "privileged" not in service


@pytest.mark.parametrize("name", [name for name in OURS if name != "migrate"])
def test_every_required_setting_is_given(name: str) -> None:
    given = COMPOSE["services"][name]["environment"]
    for field, info in Settings.model_fields.items():
        if info.is_required():
            assert given.keys() & {field.upper(), f"TROLL_{field.upper()}"}, f"{name} lacks {field}"


@pytest.mark.parametrize("name", ["api", *JAILERS])
def test_what_graders_and_integrations_may_do_is_passed_on_where_it_is_given(name: str) -> None:
    given = COMPOSE["services"][name]["environment"]
    # Without a value here, compose passes a variable on that is set, and leaves out one that is not.
    assert [given[each] for each in ("TROLL_GRADERS", "TROLL_WANDB_MODE")] == [None, None]
    assert ("TROLL_WANDB_API_KEY" in given) == (name == "gpu-worker")


PUBLIC = {"TROLL_WANDB_BASE_URL", "TROLL_MAX_STREAMS_PER_KEY", "TROLL_PUBLIC_URL", "TROLL_HUB_URL"}
SECRETS = {
    "migrate": {"DATABASE_OWNER_URL"},
    "api": {"DATABASE_URL", "REDIS_URL", "TROLL_KEY_PEPPER", "TROLL_WEBHOOK_KEY", "TROLL_OIDC_CLIENT_SECRET"},
    "beat": {"REDIS_URL"},
    "control-worker": {"DATABASE_URL", "REDIS_URL", "TROLL_WEBHOOK_KEY"},
    "gpu-worker": {"DATABASE_URL", "REDIS_URL", "TROLL_WANDB_API_KEY"},
    "serving-worker": {"REDIS_URL"},
    "operator": {"DATABASE_URL", "TROLL_KEY_PEPPER"},
}
LOGIN_OF_SERVICE = {
    "api": "troll_api", "control-worker": "troll_control", "gpu-worker": "troll_worker", "operator": "troll_operator",
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_a_container_knows_no_secret_that_it_does_not_use(name: str) -> None:
    given = COMPOSE["services"][name]["environment"]
    assert {each for each in given if re.search("(URL|PEPPER|KEY|SECRET)$", each)} - PUBLIC == SECRETS[name]


@pytest.mark.parametrize("name", LOGIN_OF_SERVICE)
def test_each_process_has_a_login_and_a_password_of_its_own(name: str) -> None:
    url = COMPOSE["services"][name]["environment"]["DATABASE_URL"]
    password = f"{LOGIN_OF_SERVICE[name].upper()}_PASSWORD"
    assert re.fullmatch(rf"postgresql://{LOGIN_OF_SERVICE[name]}:\$\{{{password}:\?[^}}]+\}}@postgres:5432/troll", url)
    assert password in COMPOSE["services"]["postgres"]["environment"]


def test_the_script_gives_each_login_its_password(servers: Servers) -> None:
    owner = make_url(servers.database_owner_url)
    given = {role: f'it\'s {role} \\ "x"' for role in LOGINS}
    environment = {
        "PATH": f"{postgres._binaries()}:{os.environ['PATH']}",
        "POSTGRES_USER": str(owner.username),
        "POSTGRES_DB": str(owner.database),
        "PGHOST": str(owner.query["host"]),
        "PGPASSWORD": str(owner.password),
        **{f"{role.upper()}_PASSWORD": password for role, password in given.items()},
    }
    try:
        for _ in range(2):
            subprocess.run(["sh", ROOT / "deploy/create-logins.sh"], env=environment, check=True, capture_output=True)
        host = str(owner.query["host"])
        for role, password in given.items():
            with psycopg.connect(host=host, dbname=owner.database, user=role, password=password) as each:
                assert each.info.user == role
    finally:
        servers.let_in()


def test_redis_keeps_nothing_on_disk() -> None:
    redis = COMPOSE["services"]["redis"]
    assert '--appendonly no --save ""' in redis["command"][2]
    assert redis["tmpfs"] == ["/data"]
    assert "volumes" not in redis


def test_only_the_api_is_reachable_from_outside_and_only_from_this_machine() -> None:
    ports = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert list(ports) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in ports["api"])


def test_a_training_child_gets_its_grace_and_a_minute_more() -> None:
    grace = Settings.model_fields["stop_grace_seconds"].default
    assert seconds(COMPOSE["services"]["gpu-worker"]["stop_grace_period"]) >= grace + 60


def test_build_targets_exist_and_run_as_an_ordinary_user() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    by_name = {re.match(r"\S+ AS (\S+)", stage).group(1): stage for stage in stages}  # type: ignore[union-attr]
    for name in OURS:
        target = COMPOSE["services"][name]["build"]["target"]
        assert re.search(r"^USER troll$", by_name[target], flags=re.MULTILINE), target


PROFILE: dict[str, Any] = json.loads((ROOT / "deploy/seccomp-jail.json").read_text())
ALLOWED = {name for rule in PROFILE["syscalls"] if not rule.get("args") for name in rule["names"]}
NAMESPACES = {"clone", "clone3", "mount", "mount_setattr", "pivot_root", "setns", "umount2", "unshare"}


def test_the_seccomp_profile_has_the_shape_that_docker_reads() -> None:
    assert PROFILE.keys() == {"defaultAction", "defaultErrnoRet", "archMap", "syscalls"}
    assert PROFILE["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {arch["architecture"] for arch in PROFILE["archMap"]} == {"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"}
    for rule in PROFILE["syscalls"]:
        assert rule.keys() <= {"names", "action", "args", "comment"}
        assert rule["action"] == "SCMP_ACT_ALLOW"
        assert rule["names"] == sorted(set(rule["names"]))
        for argument in rule.get("args", []):
            assert argument.keys() == {"index", "value", "op"}


def test_the_seccomp_profile_allows_every_call_that_builds_a_jail() -> None:
    text = (ROOT / "workers/sandbox/kernel.py").read_text()
    called = set(re.findall(r"_libc\.(\w+)\(", text)) - {"syscall"}
    assert {"unshare", "mount", "setns", "pivot_root"} <= called
    assert "mount_setattr" in text
    assert called | {"mount_setattr"} <= ALLOWED


def test_the_seccomp_profile_adds_namespaces_and_nothing_else() -> None:
    (added,) = (rule["names"] for rule in PROFILE["syscalls"] if "unshare" in rule["names"])
    assert set(added) == NAMESPACES
    for_operators_only = {
        *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "kexec_load", "init_module", "finit_module"),
        *("add_key", "keyctl", "request_key", "open_by_handle_at", "fsopen", "fsmount", "move_mount", "open_tree"),
        *("reboot", "swapon", "syslog", "settimeofday", "clock_settime", "acct", "quotactl", "iopl", "ioperm"),
        *("chroot", "sethostname", "fanotify_init", "lookup_dcookie", "mbind", "move_pages", "kcmp", "pidfd_getfd"),
    }
    assert ALLOWED & for_operators_only == set()
