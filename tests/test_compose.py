"""The compose file: valid by the specification's schema, true to the code, and without secrets of its own."""

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest
import yaml
from pydantic import SecretStr
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


def test_no_secret_is_in_an_environment() -> None:
    """But for those of trackers, which are passed on where they are given."""
    for name, service in COMPOSE["services"].items():
        for variable in service.get("environment", {}):
            secret = re.search(r"(PASSWORD|PEPPER|_KEY|DATABASE_URL|OWNER_URL|REDIS_URL)$", variable)
            passed_on = ("TROLL_WANDB_API_KEY", "TROLL_MLFLOW_PASSWORD", "TROLL_MAX_STREAMS_PER_KEY")
            assert not secret or variable in passed_on, name
    assert re.search(r"://[^/\s]*:[^/\s]*@", TEXT) is None


def test_the_script_makes_every_secret_that_is_mounted_and_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = [make_secrets(folder, TROLL_API_PASSWORD="given") for _ in range(2)]
    assert made[0] == made[1]
    assert {name: Path(entry["file"]).name for name, entry in COMPOSE["secrets"].items()} == {
        name: name for name in made[0]
    }
    assert made[0]["api_password"] == "given"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o444}


@pytest.mark.parametrize("login", ["worker", "redis"])
def test_a_password_that_a_url_cannot_hold_is_refused(tmp_path: Path, login: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        make_secrets(tmp_path / "secrets", **{f"TROLL_{login.upper()}_PASSWORD": "p@ss"})
    assert f"{login}_password" in refused.value.stderr


def make_secrets(folder: Path, **environment: str) -> dict[str, str]:
    """What the script leaves in ``folder``, by name."""
    command = ["sh", str(ROOT / "deploy/make-secrets.sh"), str(folder)]
    subprocess.run(command, env={"PATH": os.environ["PATH"], **environment}, check=True, capture_output=True, text=True)
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_containers_are_locked_down(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true", *(JAILER if name in JAILERS else [])]
    assert "privileged" not in service
    # Ours run as the image's user, which another test looks at.
    assert name in OURS or service["user"] in ("postgres", "redis")


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_containers_cannot_take_the_machine_from_each_other(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["deploy"]["resources"]["limits"].keys() == {"memory"}
    assert service["pids_limit"] > 0
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", [name for name in COMPOSE["services"] if name not in ("migrate", "operator")])
def test_what_goes_on_running_has_a_health_check(name: str) -> None:
    service = COMPOSE["services"][name]
    command = str(service["healthcheck"]["test"])
    assert ("TROLL_PULSE_FILE" in service.get("environment", {})) == ("/tmp/pulse" in command)


@pytest.mark.parametrize("name", [name for name in OURS if name != "migrate"])
def test_every_required_setting_is_given(name: str) -> None:
    given = COMPOSE["services"][name]["environment"]
    for field, info in Settings.model_fields.items():
        if info.is_required():
            assert f"TROLL_{field.upper()}" in given, f"{name} lacks {field}"


NOT_FROM_OUTSIDE = {"TROLL_DATA_DIR", "TROLL_MODELS_DIR", "TROLL_PULSE_FILE"}
"""Set by the file itself."""
SETTINGS = {
    f"TROLL_{field.upper()}" for field, info in Settings.model_fields.items() if info.annotation != SecretStr | None
}
PROCESSES = ("api", "beat", "control-worker", "gpu-worker", "serving-worker")


@pytest.mark.parametrize("name", PROCESSES)
def test_every_setting_that_is_set_is_passed_on(name: str) -> None:
    given = COMPOSE["services"][name]["environment"]
    # Without a value here, compose passes a variable on that is set, and leaves out one that is not.
    passed_on = {each for each, value in given.items() if value is None and each.startswith("TROLL_")}
    of_trackers = {"TROLL_WANDB_API_KEY", "TROLL_MLFLOW_TOKEN", "TROLL_MLFLOW_PASSWORD"}
    secret = {*of_trackers, "TROLL_OIDC_CLIENT_SECRET"}
    assert passed_on - secret == SETTINGS - NOT_FROM_OUTSIDE | {"TROLL_GRADERS"}
    assert of_trackers & given.keys() == (of_trackers if name == "gpu-worker" else set())
    assert ("TROLL_OIDC_CLIENT_SECRET" in given) == (name == "api")


SECRETS = {
    "migrate": {"database_owner_url": "database_owner_url"},
    "api": {
        "database_url": "api_database_url",
        "redis_url": "redis_url",
        "troll_key_pepper": "troll_key_pepper",
        "troll_webhook_key": "troll_webhook_key",
    },
    "beat": {"redis_url": "redis_url"},
    "control-worker": {
        "database_url": "control_database_url",
        "redis_url": "redis_url",
        "troll_webhook_key": "troll_webhook_key",
    },
    "gpu-worker": {"database_url": "worker_database_url", "redis_url": "redis_url"},
    "serving-worker": {"redis_url": "redis_url"},
    "operator": {"database_url": "operator_database_url", "troll_key_pepper": "troll_key_pepper"},
}
"""The secrets' files of each service, by what the container calls them, and what they are called in the folder."""
LOGIN_OF_SERVICE = {
    "api": "troll_api", "control-worker": "troll_control", "gpu-worker": "troll_worker", "operator": "troll_operator",
}  # fmt: skip


def mounted(name: str) -> dict[str, str]:
    """The secrets of a service: names of files in the container, and whose content they have."""
    entries = [each if isinstance(each, dict) else {"source": each} for each in COMPOSE["services"][name]["secrets"]]
    return {str(each.get("target", each["source"])): str(each["source"]) for each in entries}


@pytest.mark.parametrize("name", OURS)
def test_a_container_knows_no_secret_that_it_does_not_use(name: str) -> None:
    assert mounted(name) == SECRETS[name]
    assert COMPOSE["services"][name]["environment"]["TROLL_SECRETS_DIR"] == "/run/secrets"


@pytest.mark.parametrize("name", LOGIN_OF_SERVICE)
def test_each_process_has_a_login_and_a_password_of_its_own(name: str, tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "secrets")
    url = make_url(made[mounted(name)["database_url"]])
    assert (url.username, url.host, url.database) == (LOGIN_OF_SERVICE[name], "postgres", "troll")
    assert url.password == made[f"{LOGIN_OF_SERVICE[name].removeprefix('troll_')}_password"]
    postgres = COMPOSE["services"]["postgres"]
    file = postgres["environment"][f"{LOGIN_OF_SERVICE[name].upper()}_PASSWORD_FILE"]
    assert Path(file).name in postgres["secrets"]
    assert made[Path(file).name] == url.password


@pytest.mark.parametrize("in_files", [False, True], ids=["environment", "files"])
def test_the_script_gives_each_login_its_password(in_files: bool, servers: Servers, tmp_path: Path) -> None:
    owner = make_url(servers.database_owner_url)
    given = {role: f'it\'s {role} \\ "x"' for role in LOGINS}
    environment = {
        "PATH": f"{postgres._binaries()}:{os.environ['PATH']}",
        "POSTGRES_USER": str(owner.username),
        "POSTGRES_DB": str(owner.database),
        "PGHOST": str(owner.query["host"]),
        "PGPASSWORD": str(owner.password),
    }
    for role, password in given.items():
        (tmp_path / role).write_text(f"{password}\n")
        variable = f"{role.upper()}_PASSWORD"
        environment |= {f"{variable}_FILE": str(tmp_path / role)} if in_files else {variable: password}
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
