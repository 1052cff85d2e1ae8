"""As much of an MLflow server as keeps runs: its REST API, with the answers of MLflow 3."""

import json
import posixpath
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "t" * 40


@dataclass
class KeptRun:
    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)

    def values(self, key: str) -> list[tuple[int, float]]:
        return [(each["step"], each["value"]) for each in self.metrics if each["key"] == key]


def is_name(name: str) -> bool:
    """Whether MLflow takes it for a metric, a parameter or a tag."""
    spelled = len(name) <= 250 and re.fullmatch(r"[/\w.\- ]*", name)
    path = posixpath.normpath(name)
    return bool(spelled) and path == name and path != "." and not path.startswith(("..", "/"))


class MlflowServer:
    """A server on loopback. ``refusing`` answers 401; ``silent`` takes requests and never answers.

    ``away`` is how it behaves to the next requests: "hangs up" on one, or answers with that status.
    """

    def __init__(self) -> None:
        server = self
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, KeptRun] = {}
        self.refusing = self.silent = False
        self.away: list[str | int] = []
        self._let_go = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                url = urlsplit(self.path)
                given = json.loads(body) if body else {name: each[0] for name, each in parse_qs(url.query).items()}
                away = server.away.pop(0) if server.away else None
                if away == "hangs up":
                    self.close_connection = True
                    return
                if server.silent:
                    server._let_go.wait(60)
                    return
                named = url.path.removeprefix("/api/2.0/mlflow/").replace("/", "_").replace("-", "_")
                if isinstance(away, int):
                    status, answer = away, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}
                elif server.refusing or self.headers.get("authorization") != f"Bearer {TOKEN}":
                    status, answer = 401, {"error_code": "UNAUTHENTICATED", "message": "who are you?"}
                else:
                    status, answer = getattr(server, f"_{named}")(**given)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _experiments_get_by_name(self, experiment_name: str) -> tuple[int, dict[str, Any]]:
        for id, name in self.experiments.items():
            if name == experiment_name:
                return 200, {"experiment": {"experiment_id": id, "name": name, "lifecycle_stage": "active"}}
        return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}

    def _experiments_create(self, name: str) -> tuple[int, dict[str, Any]]:
        id = str(len(self.experiments) + 1)
        self.experiments[id] = name
        return 200, {"experiment_id": id}

    def _runs_search(self, experiment_ids: list[str], filter: str, max_results: int) -> tuple[int, dict[str, Any]]:
        tag, value = filter.removeprefix("tags.").split(" = ")
        found = [
            {"info": {"run_id": id}, "data": {"metrics": run.metrics[-1:]}}
            for id, run in self.runs.items()
            if run.experiment in experiment_ids and run.tags.get(tag.strip("`")) == value.strip("'")
        ]
        return 200, {"runs": found[:max_results]} if found else {}

    def _runs_create(
        self, experiment_id: str, run_name: str, start_time: int, tags: list[dict[str, str]]
    ) -> tuple[int, dict[str, Any]]:
        if not all(is_name(each["key"]) for each in tags):
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "invalid names"}
        id = f"{len(self.runs):032x}"
        self.runs[id] = KeptRun(experiment_id, run_name, {each["key"]: each["value"] for each in tags})
        return 200, {"run": {"info": {"run_id": id}}}

    def _runs_log_batch(
        self, run_id: str, metrics: list[dict[str, Any]] | None = None, params: list[dict[str, str]] | None = None
    ) -> tuple[int, dict[str, Any]]:
        if len(metrics or []) > 1000 or len(params or []) > 100:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "too many"}
        wrong = [each["key"] for each in (*(metrics or []), *(params or [])) if not is_name(each["key"])]
        if wrong:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": f"invalid names: {wrong}"}
        self.runs[run_id].metrics += metrics or []
        self.runs[run_id].params |= {each["key"]: each["value"] for each in params or []}
        return 200, {}

    def _runs_update(self, run_id: str, status: str, end_time: int | None = None) -> tuple[int, dict[str, Any]]:
        self.runs[run_id].statuses.append(status)
        return 200, {}
