"""Takes dashboard.png and administration.png, of a stack that it starts. Needs Chromium and the extra `dev`.

python -m docs.figures.dashboard
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from openai import OpenAI
from playwright.sync_api import Browser, sync_playwright

from service.cli import demo
from service.embedded.detached import start_detached, stop_stack
from service.embedded.stack import Options

HERE = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
PEOPLE = (("ada@acme.example", "Ada", "owner"), ("grace@acme.example", "Grace", "reader"))


def trained(client: OpenAI, model: str, folder: Path) -> str:
    training, held_out = demo.write_rows(folder)
    job = demo.submit(client, model, training, held_out)
    while (job := client.fine_tuning.jobs.retrieve(job.id, extra_query={"wait": 60})).status != "succeeded":
        assert job.status in ("validating_files", "queued", "running"), job.error
    return job.id


def administered(folder: Path, origin: str) -> str:
    """An admin key of an organisation with members, a project and an account."""
    command = [sys.executable, "-m", "service.cli", "admin", "keys", "create", "--organization", "default", "--json"]
    done = subprocess.run([*command, "--data-dir", str(folder)], check=True, capture_output=True, text=True)
    key: str = json.loads(done.stdout)["key"]
    with OpenAI(base_url=f"{origin}/v1", api_key="none", admin_api_key=key) as client:
        organization, users = client.admin.organization, []
        for email, name, role in PEOPLE:
            body = {"email": email, "name": name, "role": role}
            headers = {"Authorization": f"Bearer {key}"}
            users.append(
                client.post("/organization/users", cast_to=dict, body=body, options={"headers": headers})["id"]
            )
        project = organization.projects.create(name="vision")
        organization.projects.users.create(project.id, user_id=users[1], role="member")
        organization.projects.service_accounts.create(project.id, name="nightly")
    return key


def shoot(browser: Browser, origin: str, key: str, page: str, file: str, height: int) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": height}, color_scheme="light")
    context.add_cookies([{"name": "troll_session", "value": key, "url": origin}])
    window = context.new_page()
    window.goto(f"{origin}/#/{page}")
    window.wait_for_load_state("networkidle")
    window.screenshot(path=HERE / file)
    context.close()


def main() -> None:
    os.environ.setdefault("TROLL_REQUESTS_PER_MINUTE", "0")
    chromium = next(
        found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))
    )
    with tempfile.TemporaryDirectory(prefix="troll-figures-") as name:
        folder = Path(name)
        stack = start_detached(Options(folder, port=0, demo_model=True))
        origin = stack["base_url"].removesuffix("/v1")
        try:
            job = trained(OpenAI(base_url=stack["base_url"], api_key=stack["api_key"]), stack["model"], folder)
            admin_key = administered(folder, origin)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                shoot(browser, origin, stack["api_key"], f"job/{job}", "dashboard.png", 1400)
                shoot(browser, origin, admin_key, "members", "administration.png", 900)
                browser.close()
        finally:
            stop_stack(folder)


if __name__ == "__main__":
    main()
