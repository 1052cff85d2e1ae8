"""Runs of an MLflow server, by its REST API.

MLflow's own client is not used: it wants older versions of packages that vLLM brings, and these few calls have been the
same since MLflow 1. An attempt finds the run of the one before it by a tag.
"""

import itertools
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

from service.jobs.integrations import MlflowIntegration
from service.settings import settings
from workers.tracking.run import End, Header, Row, Run, TrackedRun

TIMEOUT_SECONDS = 20.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
PATIENCE_SECONDS = 600.0
"""How long a server may be away, restarting perhaps, before a run is given up."""
AWAY = (429, 502, 503, 504)
"""Statuses of a server, or of what stands before it, that may answer later."""
LOST = (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError)
"""A request that was lost on its way, or its answer."""
MAX_METRICS, MAX_PARAMS = 1000, 100
"""Of one request."""
MAX_NAME, MAX_VALUE = 250, 6000
"""Characters of a metric's or parameter's name, and of a parameter."""
TAG = "troll.run"
STATUSES = {"succeeded": "FINISHED", "failed": "FAILED", "preempted": "SCHEDULED"}


class MlflowError(Exception):
    """What the server answered."""


class MlflowRun(TrackedRun):
    title = "MLflow"

    def __init__(self, run: Run, header: Header) -> None:
        asked = MlflowIntegration.model_validate(run.settings).mlflow
        address = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")
        self._client = httpx2.Client(
            base_url=f"{address}/api/2.0/mlflow/", timeout=TIMEOUT_SECONDS, **_credentials(os.environ)
        )
        self._waiting: list[dict[str, Any]] = []
        experiment = self._experiment(asked.experiment)
        found = self._found(experiment, run.id)
        if found is None:
            self._id = self._begin(experiment, run, asked.tags or {}, header)
        else:
            self._id = found["info"]["run_id"]
            last = max((int(metric.get("step", 0)) for metric in found["data"].get("metrics", [])), default=-1)
            self.step = last + 1
            self._ask("POST", "runs/update", {"run_id": self._id, "status": "RUNNING"})
        self.url = f"{address}/#/experiments/{experiment}/runs/{self._id}"

    @staticmethod
    def environment(folder: Path) -> dict[str, str]:
        ours = settings()
        given = {"MLFLOW_TRACKING_URI": ours.mlflow_uri, "MLFLOW_TRACKING_USERNAME": ours.mlflow_username}
        secrets = {"MLFLOW_TRACKING_TOKEN": ours.mlflow_token, "MLFLOW_TRACKING_PASSWORD": ours.mlflow_password}
        given |= {name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None}
        return {name: value for name, value in given.items() if value is not None}

    def log(self, row: Row) -> None:
        at = int(row.time * 1000)
        measured = [
            {"key": key, "value": value, "timestamp": at, "step": row.step} for key, value in named(row.numbers).items()
        ]
        if len(self._waiting) + len(measured) > MAX_METRICS:
            self.flush()
        self._waiting += measured

    def flush(self) -> None:
        while self._waiting:
            part, self._waiting = self._waiting[:MAX_METRICS], self._waiting[MAX_METRICS:]
            self._ask("POST", "runs/log-batch", {"run_id": self._id, "metrics": part})

    def finish(self, end: End) -> None:
        self.flush()
        ended = {} if end.end == "preempted" else {"end_time": int(time.time() * 1000)}
        self._ask("POST", "runs/update", {"run_id": self._id, "status": STATUSES[end.end], **ended})
        self._client.close()

    def _experiment(self, name: str) -> str:
        """The id of the experiment ``name``, which another job may make at the same moment."""
        for _ in range(2):
            found = self._ask("GET", "experiments/get-by-name", {"experiment_name": name}, tolerated=404)
            if found is not None:
                if found["experiment"]["lifecycle_stage"] != "active":
                    raise MlflowError(f"the experiment '{name}' is deleted on the server: name another, or restore it")
                return str(found["experiment"]["experiment_id"])
            made = self._ask("POST", "experiments/create", {"name": name}, tolerated=400)
            if made is not None:
                return str(made["experiment_id"])
        raise MlflowError(f"the experiment '{name}' cannot be made")

    def _found(self, experiment: str, id: str) -> dict[str, Any] | None:
        """The run that an earlier attempt began."""
        query = {"experiment_ids": [experiment], "filter": f"tags.`{TAG}` = '{id}'", "max_results": 1}
        runs: list[dict[str, Any]] = (self._ask("POST", "runs/search", query) or {}).get("runs", [])
        return runs[0] if runs else None

    def _begin(self, experiment: str, run: Run, tags: dict[str, str], header: Header) -> str:
        # Ours first, whose names then stay as they are.
        given = {TAG: run.id, "troll.model": header.model}
        given = {**given, **tags, **given}
        made = self._ask(
            "POST",
            "runs/create",
            {
                "experiment_id": experiment,
                "run_name": run.name,
                "start_time": int(time.time() * 1000),
                "tags": [{"key": key, "value": value} for key, value in named(given).items()],
            },
        )
        id = str((made or {})["run"]["info"]["run_id"])
        params = [{"key": key, "value": value[:MAX_VALUE]} for key, value in named(_flat(header.config)).items()]
        for first in range(0, len(params), MAX_PARAMS):
            self._ask("POST", "runs/log-batch", {"run_id": id, "params": params[first : first + MAX_PARAMS]})
        return id

    def _ask(
        self, method: str, path: str, given: dict[str, Any], tolerated: int | None = None
    ) -> dict[str, Any] | None:
        """What the server answers, which is waited for if it is away; None where it refuses with ``tolerated``."""
        sent = {"params": given} if method == "GET" else {"json": given}
        # A second run would be one too many, and of one that was asked for nobody knows whether it was made.
        away = httpx2.ConnectError if path == "runs/create" else LOST
        answer = patiently(lambda: self._client.request(method, path, **sent), away)  # type: ignore[arg-type]
        if answer.status_code == tolerated:
            return None
        if answer.status_code != 200:
            raise MlflowError(f"{path} was answered with {answer.status_code}: {answer.text[:200]}")
        found: dict[str, Any] = answer.json()
        return found


def patiently(
    ask: Callable[[], httpx2.Response], away: type[Exception] | tuple[type[Exception], ...]
) -> httpx2.Response:
    """What a server answers that may be ``away`` for a while. Raises as ``ask`` does where it stays away."""
    give_up_at, wait = time.monotonic() + PATIENCE_SECONDS, FIRST_WAIT_SECONDS
    while True:
        last = time.monotonic() + wait > give_up_at
        try:
            answer = ask()
            if answer.status_code not in AWAY or last:
                return answer
        except away:
            if last:
                raise
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def _credentials(environment: Any) -> dict[str, Any]:
    token, user = environment.get("MLFLOW_TRACKING_TOKEN"), environment.get("MLFLOW_TRACKING_USERNAME")
    if token:
        return {"headers": {"authorization": f"Bearer {token}"}}
    return {"auth": (user, environment.get("MLFLOW_TRACKING_PASSWORD", ""))} if user else {}


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` under names that a server takes: models, schemas and chat templates have others in theirs."""
    given: dict[str, Any] = {}
    for key, value in values.items():
        # A server may keep them as files, so that each part of a path has to be a name.
        parts = [part.strip(".") or "_" for part in re.sub(r"[^\w.\- /]", "_", key).split("/")]
        name = "/".join(parts)[:MAX_NAME].rstrip("/.")
        numbered = (f"{name[: MAX_NAME - 8]}_{number}" for number in itertools.count(2))
        given[next(each for each in itertools.chain([name], numbered) if each not in given)] = value
    return given


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Everything that the job was asked to do as texts, nested names joined by dots."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat
