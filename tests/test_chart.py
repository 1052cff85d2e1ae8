"""The Helm chart: true to the code and to docker-compose.yml, valid Kubernetes, and as locked down as the containers.

What Helm makes of it is tested where Helm is installed; ``.ci/run`` sees to that.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from tests.test_compose import COMPOSE, NOT_FROM_OUTSIDE, SECRETS, SETTINGS, seconds

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "troll-rft"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
EVERYTHING = ROOT / "tests" / "data" / "chart" / "everything.yaml"
TEMPLATES = {
    "api": "api",
    "beat": "beat",
    "control-worker": "control-worker",
    "gpu-worker": "gpu-workers",
    "serving-worker": "serving-workers",
    "migrate": "migrate",
    "operator": "operator",
}
"""The file of each service of docker-compose.yml."""
HELM = shutil.which("helm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
needs_helm = pytest.mark.skipif(HELM is None, reason="Helm is not installed")
IMAGES = ("--set", "images.service=service:1", "--set", "images.worker=worker:1")
OLDEST = "1.30"
"""Kubernetes that Chart.yaml asks for."""


def template(service: str) -> str:
    return (CHART / "templates" / f"{TEMPLATES[service]}.yaml").read_text()


def test_the_values_are_those_of_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    errors = jsonschema.Draft7Validator(SCHEMA).iter_errors(VALUES)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"settings": {"TROLL_MAX_RUNING_JOBS": 4}},
        {"api": {"replica": 2}},
        {"gpuWorkers": {"a100": {"gpus": 1}}},
        {"gpuWorkers": {"A100": {"gpus": 1, "replicas": 1}}},
        {"secrets": {"redis_url": {"name": "redis"}}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_would_be_passed_over(wrong: dict[str, Any]) -> None:
    assert not jsonschema.Draft7Validator(SCHEMA).is_valid(VALUES | wrong)


def test_every_setting_can_be_given_and_nothing_else() -> None:
    assert SCHEMA["definitions"]["settings"]["properties"].keys() == SETTINGS - NOT_FROM_OUTSIDE | {"TROLL_GRADERS"}
    named = set(re.findall(r"\bTROLL_[A-Z_]+", "".join(template(each) for each in TEMPLATES)))
    assert named <= SETTINGS | {"TROLL_SECRETS_DIR", "TROLL_GRADERS"}


@pytest.mark.parametrize("service", [each for each in TEMPLATES if each != "operator"])
def test_commands_are_those_of_the_containers(service: str) -> None:
    found = [yaml.safe_load(each) for each in re.findall(r"^ {10}command: (\[.*\])$", template(service), re.MULTILINE)]
    assert found == ([COMPOSE["services"][service]["command"]] if "command" in COMPOSE["services"][service] else [])


OPTIONAL = {
    "gpu-worker": ["troll_wandb_api_key", "troll_mlflow_token", "troll_mlflow_password"],
    "api": ["troll_oidc_client_secret"],
}
"""Secrets that a pod is given where they are there."""


@pytest.mark.parametrize("service", TEMPLATES)
def test_a_pod_knows_no_secret_that_it_does_not_use(service: str) -> None:
    mounted = re.findall(r'"from" \$?\.Values\.secrets\.(\w+) "path" "(\w+)"', template(service))
    optional = OPTIONAL.get(service, [])
    assert {path: source for source, path in mounted} == SECRETS[service] | dict(zip(optional, optional, strict=True))
    assert all(source in VALUES["secrets"] for source, _ in mounted)
    assert template(service).count("optional: true") == len(optional)


@pytest.mark.parametrize("service", ["control-worker", "gpu-worker"])
def test_only_workers_that_grade_get_what_a_jail_asks_for(service: str) -> None:
    assert {each for each in TEMPLATES if "troll-rft.jailSecurity" in template(each)} == {
        "control-worker",
        "gpu-worker",
    }
    assert 'include "troll-rft.security"' not in template(service)


@pytest.mark.parametrize("service", TEMPLATES)
def test_pods_use_the_image_of_their_container(service: str) -> None:
    target = COMPOSE["services"][service]["build"]["target"]
    assert set(re.findall(r"Values\.images\.(\w+) }}$", template(service), re.MULTILINE)) - {"pullPolicy"} == {target}


def test_the_chart_is_of_the_projects_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"


def test_the_document_makes_the_secret_and_values_that_the_chart_reads() -> None:
    text = (ROOT / "docs" / "operations.md").read_text().split("## Kubernetes")[1].split("\n## ")[0]
    made = set(re.findall(r"--from-literal=(\w+)=", text))
    assert made == {each["key"] for each in VALUES["secrets"].values()} - {
        name for names in OPTIONAL.values() for name in names
    }
    assert {each["name"] for each in VALUES["secrets"].values()} == {"troll-rft"}
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    jsonschema.Draft7Validator(SCHEMA).validate(VALUES | yaml.safe_load(example))


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    return subprocess.run([HELM, *arguments], check=False, capture_output=True, text=True, timeout=60)


@cache
def rendered(*arguments: str) -> list[dict[str, Any]]:
    """What Helm would give to Kubernetes."""
    made = helm("template", "run", CHART, "--namespace", "here", "--kube-version", OLDEST, *arguments)
    assert made.returncode == 0, made.stderr
    return [each for each in yaml.safe_load_all(made.stdout) if each]


BOTH = pytest.mark.parametrize("arguments", [IMAGES, ("--values", str(EVERYTHING))], ids=["defaults", "everything"])


def pods(arguments: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What runs of each component, and its pods' specification."""
    for each in rendered(*arguments):
        if each["kind"] in ("Deployment", "Job"):
            yield each["metadata"]["labels"]["app.kubernetes.io/component"], each["spec"]["template"]["spec"]


@needs_helm
def test_helm_finds_no_fault() -> None:
    done = helm("lint", "--strict", CHART, *IMAGES)
    assert done.returncode == 0, done.stdout


@needs_helm
@BOTH
@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_kubernetes_knows_every_field(arguments: tuple[str, ...], version: str) -> None:
    kinds = {each["kind"] for each in rendered(*arguments)}
    assert {"Deployment", "Service", "Job", "PersistentVolumeClaim", "NetworkPolicy"} <= kinds
    for each in rendered(*arguments):
        kubernetes_validate.validate(each, version, strict=True)


@needs_helm
def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    (service,) = (each for each in rendered(*IMAGES) if each["kind"] == "Service")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**service, "spec": {**service["spec"], "prots": []}}, OLDEST, strict=True)


@needs_helm
@BOTH
def test_pods_are_locked_down(arguments: tuple[str, ...]) -> None:
    found = dict(pods(arguments))
    assert found.keys() == TEMPLATES.keys()
    for component, pod in pods(arguments):
        assert pod["automountServiceAccountToken"] is False
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        security = dict(container["securityContext"])
        jail = {security.pop("seccompProfile", {"type": None})["type"], *security.pop("appArmorProfile", {}).values()}
        jailer = component in ("control-worker", "gpu-worker") and "--values" in arguments
        assert jail == ({"Localhost", "Unconfined"} if jailer else {None})
        assert security == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        # A pool that says nothing of memory has no limit.
        assert "memory" in container["resources"]["limits"] or arguments != IMAGES


@needs_helm
@BOTH
def test_what_goes_on_running_is_probed(arguments: tuple[str, ...]) -> None:
    probed = {
        component: {each for each in pod["containers"][0] if each.endswith("Probe")}
        for component, pod in pods(arguments)
    }
    assert probed == {
        "api": {"startupProbe", "readinessProbe", "livenessProbe"},
        "beat": {"livenessProbe"},
        "serving-worker": {"startupProbe", "livenessProbe"},
        # They go on without Redis, and would not answer a probe then.
        "control-worker": {"startupProbe"},
        "gpu-worker": {"startupProbe"},
        "migrate": set(),
        "operator": set(),
    }


@needs_helm
@BOTH
def test_base_models_are_only_read_and_every_mount_has_its_volume(arguments: tuple[str, ...]) -> None:
    for component, pod in pods(arguments):
        volumes = {each["name"]: each for each in pod["volumes"]}
        mounts = {each["name"]: each for each in pod["containers"][0]["volumeMounts"]}
        assert volumes.keys() == mounts.keys(), component
        if "models" in mounts:
            assert mounts["models"]["readOnly"] is volumes["models"]["persistentVolumeClaim"]["readOnly"] is True


@needs_helm
@BOTH
def test_no_variable_is_given_twice(arguments: tuple[str, ...]) -> None:
    for component, pod in pods(arguments):
        names = [each["name"] for each in pod["containers"][0]["env"]]
        assert len(names) == len(set(names)), component


@needs_helm
def test_settings_are_what_a_process_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helm takes numbers for floats, which it writes as 8.589934592e+09."""
    pool = next(pod for component, pod in pods(("--values", str(EVERYTHING))) if component == "gpu-worker")
    for each in pool["containers"][0]["env"]:
        monkeypatch.setenv(each["name"], each["value"])
    read = Settings()
    assert (read.max_upload_bytes, read.serving_memory_share, read.max_storage_bytes) == (8589934592, 0.9, 0)
    assert (read.transaction_pooling, list(read.trusted_hosts)) == (True, ["hooks.example.com"])
    assert (read.processes_per_job, read.rollout_tensor_parallel) == (8, 2)
    graders = next(each["value"] for each in pool["containers"][0]["env"] if each["name"] == "TROLL_GRADERS")
    assert json.loads(graders)["jail_limits"] == {"memory_bytes": 4294967296}


@needs_helm
def test_pools_are_beside_each_other() -> None:
    found = {
        each["metadata"]["name"]: each["spec"]
        for each in rendered("--values", str(EVERYTHING))
        if each["metadata"]["labels"]["app.kubernetes.io/component"] in ("gpu-worker", "serving-worker")
        and each["kind"] == "Deployment"
    }
    gpus = {
        name.removeprefix("run-troll-rft-"): spec["template"]["spec"]["containers"][0]["resources"]["limits"].get(
            "nvidia.com/gpu"
        )
        for name, spec in found.items()
    }
    assert gpus == {
        "gpu-worker-h100": 8,
        "gpu-worker-small": 1,
        "serving-worker-cpu": None,
        "serving-worker-default": 1,
    }
    selectors = [json.dumps(spec["selector"], sort_keys=True) for spec in found.values()]
    assert len(set(selectors)) == len(selectors)


@needs_helm
@BOTH
def test_a_training_child_gets_its_grace_and_a_minute_more(arguments: tuple[str, ...]) -> None:
    graces = {pod["terminationGracePeriodSeconds"] for component, pod in pods(arguments) if component == "gpu-worker"}
    compose = seconds(COMPOSE["services"]["gpu-worker"]["stop_grace_period"])
    assert graces == {compose if arguments == IMAGES else 660}


@needs_helm
def test_the_migration_comes_first_and_needs_nothing_of_the_release() -> None:
    (job,) = (each for each in rendered(*IMAGES) if each["kind"] == "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    pod = job["spec"]["template"]["spec"]
    assert "serviceAccountName" not in pod
    assert [each for each in pod["volumes"] if "persistentVolumeClaim" in each or "configMap" in each] == []


@needs_helm
def test_every_component_may_reach_the_servers_that_it_has_secrets_for() -> None:
    reached: dict[int, set[str]] = {5432: set(), 6379: set()}
    for each in rendered(*IMAGES):
        if each["kind"] == "NetworkPolicy" and "matchExpressions" in each["spec"]["podSelector"]:
            (expression,) = each["spec"]["podSelector"]["matchExpressions"]
            reached[each["spec"]["egress"][0]["ports"][0]["port"]] |= set(expression["values"])
    has = {service: "".join(secrets) for service, secrets in SECRETS.items()}
    assert reached[5432] == {service for service, secrets in has.items() if "database" in secrets}
    assert reached[6379] == {service for service, secrets in has.items() if "redis" in secrets}


@needs_helm
def test_names_of_workers_are_told_apart_however_long_the_releases_is() -> None:
    """A worker is called by its pod's host name, of which 63 characters are kept."""
    pools = ("--set", "gpuWorkers.abcdefghij.replicas=1,gpuWorkers.abcdefghij.gpus=1")
    made = helm("template", "r" * 53, CHART, *IMAGES, *pools)
    names = [
        each["metadata"]["name"] for each in yaml.safe_load_all(made.stdout) if each and each["kind"] == "Deployment"
    ]
    random_part = len("-7d4b9c6f85-x2k4z")
    workers = [name for name in names if "gpu-worker" in name or "control-worker" in name]
    assert len(workers) == 3
    assert [name for name in workers if len(name) + random_part > 63] == []


@needs_helm
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["images.worker="], "images.worker"),
        (["settings.TROLL_GRADERS.jail=unshare"], "seccomp profile on the nodes"),
        (["jail.enabled=true"], "no grader makes use of it"),
        (["gpuWorkers.default.gpus=4"], "TROLL_PROCESSES_PER_JOB is 1"),
        (["api.ingress.enabled=true"], "api.ingress.host"),
        (["settings.TROLL_MAX_RUNING_JOBS=4"], "TROLL_MAX_RUNING_JOBS"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_what_would_not_work_is_said_at_once(values: list[str], said: str) -> None:
    refused = helm("template", "run", CHART, *IMAGES, *(f"--set={each}" for each in values))
    assert refused.returncode != 0
    assert said in refused.stderr
