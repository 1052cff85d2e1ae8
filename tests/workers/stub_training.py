"""A training child without training: it speaks the wire and does what the job's suffix says.

It lets the supervisor be tested in milliseconds against every way a child can end. ``STEPS`` steps, a checkpoint at
each even one; a resumed run goes on behind its newest checkpoint as the real one does.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from service.jobs.spec import RunSpec
from workers import wire

STEPS = 6
SUPERVISED = {"train_loss": 0.5, "train_mean_token_accuracy": 0.75, "valid_loss": None, "troll": {"lr": 1e-5}}


class Stub:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.commands = self.socket.makefile("rb")
        start = wire.parse_command(self.commands.readline())
        assert isinstance(start, wire.Start)
        self.run = RunSpec.model_validate_json(start.run.read_bytes())
        self.supervised = self.run.job.method.type == "supervised"
        self.plan = self.run.job.suffix or "succeed"
        self.socket.setblocking(False)

    def send(self, line: wire.Line) -> None:
        self.socket.setblocking(True)
        self.socket.sendall(line.model_dump_json().encode() + b"\n")

    def told_to_stop(self) -> bool:
        self.socket.setblocking(False)
        try:
            return b"stop" in self.socket.recv(1000)
        except BlockingIOError:
            return False

    def checkpoint(self, step: int) -> None:
        folder = self.run.output_dir / "checkpoints" / f"step-{step:06d}"
        (folder / "model").mkdir(parents=True)
        (folder / "state").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        # Steps of a reinforcement job get better and better, those of a supervised one worse and worse.
        metrics = {"valid_loss": step / STEPS} if self.supervised else {"valid_reward_mean": step / STEPS}
        self.send(wire.Checkpoint(step=step, path=folder, metrics=metrics))

    def train(self) -> int:
        first = int(self.run.checkpoints[0].name.removeprefix("step-")) if self.run.checkpoints else 0
        for step in range(first + 1, STEPS + 1):
            data: dict[str, Any] = {"step": step, "total_steps": STEPS, "attempt": self.run.attempt}
            data |= SUPERVISED if self.supervised else {"train_mean_reward": step / STEPS}
            self.send(wire.Event(type="metrics", message=f"Step {step}/{STEPS}", data=data, key=f"step-{step}"))
            self.send(wire.Progress(step=step, total_steps=STEPS, trained_tokens=100 * step, seconds_left=1.0))
            if step % 2 == 0:
                self.checkpoint(step)
            if step == 3:
                self.misbehave()
            deadline = time.monotonic() + (60 if self.plan == "wait" else 0.01)
            while time.monotonic() < deadline:
                if self.told_to_stop():
                    return wire.ExitCode.STOPPED
                time.sleep(0.01)
        model = self.run.output_dir / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        self.send(wire.Result(model_path=model, step=STEPS, trained_tokens=100 * STEPS, metrics={}))
        return wire.ExitCode.DONE

    def evaluate(self) -> int:
        total = self.run.job.method.total_steps
        for step in range(1, total + 1):
            name = f"answered/step-{step:06d}"
            if not [*self.run.output_dir.parent.glob(f"*/{name}")]:
                (self.run.output_dir / name).mkdir(parents=True)
                (self.run.output_dir / name / "ahead.json").write_text("{}")
                self.send(wire.Progress(step=step, total_steps=total, trained_tokens=0, seconds_left=1.0))
                self.misbehave()
                deadline = time.monotonic() + (60 if self.plan == "wait" else 0)
                while time.monotonic() < deadline:
                    if self.told_to_stop():
                        return wire.ExitCode.STOPPED
                    time.sleep(0.01)
        data = {"step": total, "total_steps": total, "validation_sets": {"a": {"mean_at_k": 0.5}}}
        self.send(wire.Event(type="metrics", message="a: mean@1=0.5", data=data, key=f"step-{total}"))
        self.send(wire.Evaluated(step=total))
        return wire.ExitCode.DONE

    def misbehave(self) -> None:
        if self.plan == "crash-once" and self.run.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.plan == "full-once" and self.run.attempt == 1:
            self.send(wire.Failure(code="disk_full", message="The disk is full."))
            sys.exit(wire.ExitCode.NO_ROOM)
        if self.plan == "grader-away" and self.run.attempt == 1:
            self.send(wire.Failure(code="grader_unavailable", message="The scoring service could not be reached."))
            sys.exit(wire.ExitCode.GRADER_AWAY)
        if self.plan == "crash-after-each":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.plan == "crash-always":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.plan == "user-error":
            self.send(wire.Failure(code="non_finite_loss", message="The loss is not finite.", param="learning_rate"))
            sys.exit(wire.ExitCode.USER_ERROR)
        if self.plan == "bug":
            sys.exit(wire.ExitCode.BUG)
        if self.plan == "nul":
            self.send(wire.Event(message="a\0 b", data={"a\0b": ["\0"]}))
        if self.plan == "deaf":
            time.sleep(60)


if __name__ == "__main__":
    secret = ("DATABASE", "REDIS", "TROLL", "WANDB")
    assert not [name for name in os.environ if name.startswith(secret)], "secrets leaked"
    stub = Stub(str(Path(sys.argv[sys.argv.index("--socket") + 1])))
    sys.exit(stub.train() if stub.run.job.method.trains else stub.evaluate())
