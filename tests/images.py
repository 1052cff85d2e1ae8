"""``python -m tests.images``: what an image installs is enough for the commands of its services.

For each image, an environment of just its packages is made from the Dockerfile's steps and from the files that
``.dockerignore`` lets through. In it every command of ``docker-compose.yml`` is run as a container runs it: its
variables, its files of secrets, its health check, the signal that ends it; against a PostgreSQL and a Redis of its own.
A container engine is not needed, and the layers beneath Python are not tried.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from service.core.db import Login
from service.embedded import servers as embedded
from service.embedded.folder import Folder
from service.embedded.processes import Children
from service.embedded.servers import Servers
from service.embedded.stack import free_port

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
LOGIN_OF_URL: dict[str, Login] = {
    "api_database_url": "troll_api",
    "worker_database_url": "troll_worker",
    "control_database_url": "troll_control",
    "operator_database_url": "troll_operator",
}
ENDING = ("migrate", "operator")
"""Services that do their work and end."""
HEALTHY_SECONDS = 180.0
PROBE_SECONDS = 60.0


class Image:
    """A stage of the Dockerfile and those that it is built from, as an environment in ``folder``."""

    def __init__(self, name: str, folder: Path) -> None:
        stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
        self._stages = {stage.split()[2]: stage for stage in stages}
        self._stage = self._stages[name]
        self.name = name
        self.code = folder / "app"
        self.binaries = folder / "venv" / "bin"
        folder.mkdir()
        venv.create(folder / "venv", with_pip=True)
        self._copy()

    def _copy(self) -> None:
        """What is sent to the engine, and of it what the image has."""
        sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copied = re.findall(r"^COPY (.+) \S+$", self._stages["base"], flags=re.MULTILINE)
        self.code.mkdir()
        for name in " ".join(copied).replace("./", "").split():
            assert name in sent, f".dockerignore keeps {name} from the image"
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.code / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, self.code)

    def install(self) -> None:
        """Run the Dockerfile's steps that install Python's packages. Raises ``CalledProcessError``."""
        for stage in (self._stages["base"], *([self._stage] if self.name != "base" else [])):
            for step in re.findall(r"^RUN ((?:.*\\\n)*.*)", stage, flags=re.MULTILINE):
                commands = [each.strip() for each in step.replace("\\\n", "").split(" && ")]
                wanted = [each for each in commands if each.startswith(("pip ", "python "))]
                if wanted:
                    script = " && ".join(wanted).replace("/tmp/service.txt", str(self.code / "service.txt"))
                    environment = self.environment() | {"PIP_QUIET": "1"}
                    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
                    subprocess.run(["sh", "-ec", script], cwd=self.code, env=environment, check=True)

    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.binaries}:/usr/bin:/bin", "HOME": str(self.code.parent), "PYTHONUNBUFFERED": "1"}

    def command(self) -> list[str]:
        """What the image does when it is not told otherwise."""
        (text,) = re.findall(r"^CMD \[((?:.*\\\n)*.*)\]", self._stage, flags=re.MULTILINE)
        return [str(each) for each in yaml.safe_load(f"[{text.replace(chr(92), ' ')}]")]


class Container:
    """A service of ``docker-compose.yml``, run in the environment of its image."""

    def __init__(self, name: str, image: Image, folder: Path, servers: Servers, port: int) -> None:
        self.name = name
        self._service = COMPOSE["services"][name]
        self._folder = folder / "containers" / name
        self._image = image
        secrets = self._folder / "secrets"
        secrets.mkdir(parents=True)
        for entry in self._service["secrets"]:
            source, target = (entry, entry) if isinstance(entry, str) else (entry["source"], entry["target"])
            (secrets / target).write_text(secret(source, servers))
        # Paths of a container, and where they are here.
        self._places = {
            "/run/secrets": str(secrets),
            "/data": str(folder / "data"),
            "/models": str(folder / "models"),
            "/tmp/pulse": str(self._folder / "pulse"),
            "8000": str(port),
            "0.0.0.0": "127.0.0.1",
        }
        given = self._service["environment"]
        self._environment = image.environment() | {"HOSTNAME": socket.gethostname()}
        self._environment |= {each: self._here(value) for each, value in given.items() if value is not None}
        self.log = self._folder / "log"

    def _here(self, text: str) -> str:
        for there, here in self._places.items():
            text = text.replace(there, here)
        return text

    def start(self) -> subprocess.Popen[bytes]:
        command = [self._here(each) for each in self._service.get("command") or self._image.command()]
        print(f"  {self.name}: {shlex.join(command)}", flush=True)
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, cwd=self._image.code, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def healthy(self) -> bool:
        kind, *test = self._service["healthcheck"]["test"]
        texts = [self._here(each.replace("$$", "$")) for each in test]
        command = ["sh", "-c", texts[0]] if kind == "CMD-SHELL" else texts
        done = subprocess.run(
            command, cwd=self._image.code, env=self._environment, capture_output=True, timeout=PROBE_SECONDS
        )
        return done.returncode == 0


def secret(name: str, servers: Servers) -> str:
    """The content of a secret's file, which here leads to ``servers``."""
    if name in LOGIN_OF_URL:
        return servers.database_url(LOGIN_OF_URL[name])
    return {
        "database_owner_url": servers.database_owner_url,
        "redis_url": servers.redis_url,
        "troll_key_pepper": "p" * 32,
        "troll_webhook_key": "0" * 64,
    }[name]


def fail(container: Container, why: str) -> None:
    sys.exit(f"{container.name} {why}:\n{container.log.read_text()[-6000:]}")


def run_to_its_end(container: Container) -> None:
    if status := container.start().wait(HEALTHY_SECONDS):
        fail(container, f"ended with {status}")


def run_until_healthy(container: Container, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + HEALTHY_SECONDS
    while not container.healthy():
        if process.poll() is not None:
            fail(container, f"ended with {process.returncode}")
        if time.monotonic() > deadline:
            fail(container, "does not become healthy")
        time.sleep(1.0)
    print(f"  {container.name} is healthy", flush=True)


def stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def check(containers: list[Container], servers: Servers) -> None:
    """Run every service; those that go on running together, until all are healthy, and end them."""
    for container in [each for each in containers if each.name == "migrate"]:
        run_to_its_end(container)
        servers.let_in()
    with ExitStack() as running:
        processes = {}
        for container in [each for each in containers if each.name not in ENDING]:
            process = processes[container] = container.start()
            running.callback(stop, process)
        for container, process in processes.items():
            run_until_healthy(container, process)
        for container in [each for each in containers if each.name == "operator"]:
            run_to_its_end(container)
        for container, process in processes.items():
            if (status := stop(process)) not in (0, -signal.SIGTERM):
                fail(container, f"was asked to end, and ended with {status}")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        folder = Path(temporary)
        images = {name: installed(name, folder / name) for name in ("service", "worker")}
        data = Folder(folder / "servers")
        data.prepare()
        children = Children(data.records, data.logs)
        running.callback(children.stop)
        servers = embedded.start(data, children, durable=False)
        for each in ("data", "models"):
            (folder / each).mkdir(mode=0o700)
        port = free_port("127.0.0.1", 0)
        check(
            [
                Container(name, images[target], folder, servers, port)
                for name, service in COMPOSE["services"].items()
                if (target := service.get("build", {}).get("target")) in images
            ],
            servers,
        )
    print("every command runs on what its image installs")


def installed(name: str, folder: Path) -> Image:
    """The image, which has torch if it is the workers' and else has none."""
    image = Image(name, folder)
    began = time.monotonic()
    image.install()
    print(f"{name}: installed in {time.monotonic() - began:.0f} s", flush=True)
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    has_torch = subprocess.run([image.binaries / "python", "-c", find], check=False).returncode == 0
    if has_torch != (name == "worker"):
        sys.exit(f"{name}: torch is {'there' if has_torch else 'missing'}")
    return image


if __name__ == "__main__":
    main()
