"""What graders cost: the start of a jail, what one sample costs inside, and samples per second of each type.

    python -m benchmarks.graders

Writes its tables to docs/graders.md. Graders that ask other servers are measured against a server on this machine that
answers at once, so their rows are our own share of the cost.
"""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import DOCUMENT, machine, table, write_section
from service.graders.schemas import parse_grader
from service.graders.settings import GraderSettings, JailTier, ModelEndpoint, ScoringService
from workers.graders import GraderSample, build
from workers.graders.confinement import ensure_confined
from workers.graders.jail import Jail

DOCUMENT = DOCUMENT.with_name("graders.md")
SAMPLES = 256
STARTS = 15
ROUNDS = 3
TEXT = "Let us see: 17 and 29 make 46, because 7 and 9 are 16 and 1 and 2 and the carry are 4. The answer is 46."
PROGRAM = """```python
def add(a, b):
    return a + b
if __name__ == "__main__":
    print(sum(map(int, input().split())))
```"""
SOURCE = "def grade(sample, item):\n    return float(item['answer'] in sample['output_text'])\n"
WITH_NUMPY = "import numpy\ndef grade(sample, item):\n    return float(numpy.mean([1, 2]))\n"
ITEM = {
    "question": "17+29?",
    "answer": "46",
    "text": TEXT.replace("Let us see", "Look"),
    "calls": [f"assert add({n}, 2) == {n + 2}" for n in range(5)],
    "scripts": [{"stdin": f"{n} 2", "stdout": f"{n + 2}\n"} for n in range(5)],
}


def tiers() -> list[JailTier]:
    found: list[JailTier] = ["unshare"]
    return [*found, "bubblewrap"] if shutil.which("bwrap") else found


def graders(url: str) -> dict[str, dict[str, Any]]:
    """A definition for each row of the table."""
    texts = {"name": "g", "input": "{{sample.output_text}}", "reference": "{{item.text}}"}
    similarity = {"type": "text_similarity", **texts}
    judge = {"name": "j", "model": "judge", "input": [{"role": "user", "content": "Score {{sample.output_text}}."}]}
    metrics = ("fuzzy_match", "bleu", "gleu", "meteor", "rouge_2", "rouge_l")
    return {
        "`string_check`": {"type": "string_check", "operation": "eq", **texts},
        **{f"`text_similarity`, {each}": similarity | {"evaluation_metric": each} for each in metrics},
        "`math_verify`": {"type": "math_verify", "reference": "{{item.answer}}"},
        "`python`": {"type": "python", "source": SOURCE},
        "`python`, imports NumPy": {"type": "python", "source": WITH_NUMPY},
        "`code_tests`, 5 calls": {"type": "code_tests", "tests": "{{item.calls}}"},
        "`code_tests`, 5 scripts": {"type": "code_tests", "tests": "{{item.scripts}}"},
        "`http`": {"type": "http", "url": f"{url}/score"},
        "`score_model`": {"type": "score_model", **judge},
        "`label_model`": {"type": "label_model", "labels": ["a", "b"], "passing_labels": ["a"], **judge},
    }


@contextmanager
def server() -> Iterator[str]:
    """Answers scores and judgements at once."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps(_reply(asked)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


def _reply(asked: dict[str, Any]) -> dict[str, Any]:
    if "samples" in asked:
        return {"rewards": [1.0] * len(asked["samples"])}
    result = "a" if asked["response_format"]["json_schema"]["name"] == "label_model" else 0.5
    message = {"role": "assistant", "content": json.dumps({"steps": [], "result": result})}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}


def jail_row(tier: JailTier) -> list[str]:
    """Median milliseconds of a jail's start, of one program in it, and of its end; then of the proof that it holds."""
    settings = GraderSettings(jail=tier)
    program = {"kind": "grade", "source": SOURCE, "sample": {"output_text": "46"}, "item": ITEM, "seconds": 10.0}
    starts, runs, ends = [], [], []
    for _ in range(STARTS):
        jail, seconds = _timed(lambda: Jail(settings))
        starts.append(seconds)
        runs += [_timed(lambda jail=jail: jail.run(program))[1] for _ in range(10)]  # type: ignore[misc]
        ends.append(_timed(jail.close)[1])
    ensure_confined.cache_clear()
    _, proof = _timed(lambda: ensure_confined(settings))
    return [f"`{tier}`", *(f"{median(each) * 1000:.1f}" for each in (starts, runs, ends)), f"{proof * 1000:.0f}"]


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


def grader_rows(settings: GraderSettings, url: str) -> Iterator[list[str]]:
    for name, raw in graders(url).items():
        grader = build(parse_grader(raw, "grader"), settings)
        text = PROGRAM if raw["type"] == "code_tests" else TEXT
        samples = [GraderSample(ITEM, f"Attempt {number}: {text}\n") for number in range(SAMPLES)]
        failed = [grade for grade in grader.grade(samples) if grade.reward is None]
        if failed:
            raise RuntimeError(f"{name}: {failed[0].detail}")
        best = min(_timed(lambda: grader.grade(samples))[1] for _ in range(ROUNDS))
        yield [name, f"{SAMPLES / best:,.0f}", f"{best / SAMPLES * 1000:.3f}"]


def main() -> None:
    jails = table(
        ["jail", "start, ms", "one sample, ms", "end, ms", "self-test, ms"], [jail_row(tier) for tier in tiers()]
    )
    with tempfile.TemporaryDirectory() as folder, server() as url:
        secret = Path(folder) / "secret"
        secret.write_text("a secret of the benchmark")
        settings = GraderSettings(
            jail=tiers()[0],
            model_endpoints=(ModelEndpoint(url, ("judge",)),),
            scoring_services=(ScoringService(url, secret, private_network=True),),
        )
        rates = table(["grader", "samples/s", "ms per sample"], list(grader_rows(settings, url)))
    lanes = (
        f"Batches of {SAMPLES}, best of {ROUNDS}; {settings.jail_lanes} jails (`{settings.jail}`) side by side, "
        "started for each batch."
    )
    body = f"{machine(('rapidfuzz', 'nltk', 'math-verify'))}.\n\n{jails}\n\n{lanes}\n\n{rates}"
    write_section("graders", "What they cost", body, DOCUMENT)


if __name__ == "__main__":
    main()
