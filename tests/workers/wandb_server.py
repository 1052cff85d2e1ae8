"""As much of a W&B server as its library needs to keep a run: GraphQL, the stream of rows, uploaded files."""

import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k" * 40


@dataclass
class KeptRun:
    """What the server has of a run. ``sessions`` counts how often somebody began or went on with it."""

    entity: str
    project: str
    id: str
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    sessions: int = 0
    preempting: int = 0
    exit_codes: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


class WandbServer:
    """A server on loopback. ``refusing`` answers 401; ``silent`` takes requests and never answers."""

    def __init__(self) -> None:
        server = self
        self.runs: dict[tuple[str, str, str], KeptRun] = {}
        self.refusing = self.silent = False
        self._let_go = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if server.silent:
                    server._let_go.wait(60)
                    return
                status, answer = server._answer(self.path, body, self.headers.get("authorization") or "")
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_PUT = do_POST

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

    def _answer(self, path: str, body: bytes, authorization: str) -> tuple[int, dict[str, Any]]:
        if self.refusing or (path == "/graphql" and not authorization.startswith("Basic ")):
            return 401, {"errors": [{"message": "invalid API key"}]}
        if path == "/graphql":
            asked = json.loads(body)
            return 200, {"data": getattr(self, f"_{asked['operationName']}")(**asked["variables"])}
        if path.endswith("/file_stream"):
            _, entity, project, id, _ = path.removeprefix("/files").split("/")
            self._stream(self.runs[entity, project, id], json.loads(body))
        return 200, {}

    def _stream(self, run: KeptRun, sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                run.history[part["offset"] :] = [json.loads(line) for line in part["content"]]
        run.preempting += bool(sent.get("preempting"))
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])

    # GraphQL operations, by name.

    def _RunResumeStatus(self, project: str, entity: str, name: str) -> dict[str, Any]:
        run = self.runs.get((entity, project, name))
        bucket = run and {
            "id": run.id,
            "name": run.id,
            "displayName": run.name,
            "summaryMetrics": json.dumps(run.history[-1] if run.history else {}),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps({}),
            "tags": run.tags,
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "m", "name": project, "entity": {"id": "e", "name": entity}, "bucket": bucket}}

    def _UpsertBucket(self, name: str, project: str, entity: str, **given: Any) -> dict[str, Any]:
        run = self.runs.setdefault((entity, project, name), KeptRun(entity, project, name))
        run.name, run.tags = given["displayName"] or run.name, given["tags"] or run.tags
        run.sessions += given["tags"] is not None
        run.config |= {each: value["value"] for each, value in json.loads(given["config"] or "{}").items()}
        kept = {"id": "m", "name": project, "entity": {"id": "e", "name": entity}}
        bucket = {"id": name, "name": name, "displayName": run.name, "project": kept}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(run.history)}, "inserted": True}}

    def _CreateRunFiles(self, entity: str, project: str, run: str, files: list[str]) -> dict[str, Any]:
        self.runs[entity, project, run].files += files
        targets = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": targets}}

    def __getattr__(self, name: str) -> Any:
        # What else the library may ask for is answered with nothing.
        if name.startswith("_") and name[1:2].isupper():
            return lambda **_: {}
        raise AttributeError(name)
