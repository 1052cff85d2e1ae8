"""The dashboard in a browser, on the whole stack."""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.conftest import Stack

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
# As root it has no sandbox, and what it would ask its makers for it does without.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
MILLISECONDS = 120_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """A page at the dashboard, on which no script fails."""
    context = browser.new_context(base_url=str(stack.client.base_url).removesuffix("/v1/"))
    context.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: None)
    page.goto("/")
    yield page
    context.close()
    assert faults == []


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


@pytest.fixture
def inside(page: Page, stack: Stack) -> Page:
    sign_in(page, stack.client.api_key)
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    return page


def faults(page: Page) -> list[str]:
    """What axe finds serious, in words."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['help']}" for each in found if each["impact"] in ("serious", "critical")]


def step(page: Page) -> int:
    told = re.search(r"(\d+)/\d+", page.locator(".facts").inner_text())
    return int(told[1]) if told else 0


def test_a_wrong_key_is_told_and_a_right_one_opens(page: Page, stack: Stack) -> None:
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert faults(page) == []
    sign_in(page, stack.client.api_key[:-1] + ("0" if stack.client.api_key[-1] != "0" else "1"))
    expect(page.get_by_role("alert")).to_contain_text("Incorrect API key")
    sign_in(page, stack.client.api_key)
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_job_is_made_and_watched_to_its_end(inside: Page, datasets: tuple[str, str], stack: Stack) -> None:
    page = inside
    page.get_by_role("link", name="New job").click()
    page.get_by_label("Base model").select_option(stack.model)
    page.get_by_label("Training file").select_option(datasets[0])
    page.get_by_label("Validation file").select_option(datasets[1])
    page.get_by_role("button", name="Try the grader").click()
    expect(page.get_by_role("status").filter(has_text="Reward 1")).to_be_visible()
    page.get_by_label("Settings").fill('{"n_steps": 0}')
    page.get_by_role("button", name="Create the job").click()
    expect(page.get_by_role("alert")).to_contain_text("n_steps")
    page.get_by_label("Settings").fill(
        '{"n_steps": 6, "learning_rate": 1e-4, "max_completion_tokens": 8, "eval_interval": 2}'
    )
    assert 'client.fine_tuning.jobs.create(\n    model="' in page.locator("pre").last.inner_text()
    assert faults(page) == []
    page.get_by_role("button", name="Create the job").click()
    expect(page.get_by_role("heading", name="ftjob-")).to_be_visible()
    expect(page.locator(".status")).to_have_text("succeeded")
    expect(page.get_by_role("img", name=re.compile("Reward, at the end: training"))).to_be_visible()
    assert step(page) == 6
    expect(page.get_by_role("heading", name="Answers to validation rows")).to_be_visible()
    expect(page.locator("details").first).to_be_visible()
    expect(page.get_by_role("region", name="Checkpoints")).to_contain_text("ckpt-step-6")
    assert faults(page) == []
    model = page.locator(".facts").get_by_role("link", name="chat")
    model.click()
    page.get_by_label("Message", exact=True).fill("12+34=")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answers pre")).to_have_count(2)
    for answer in page.locator(".answers pre").all():
        expect(answer).to_have_text(re.compile(r"^\d+$"))


def test_jobs_are_compared_cancelled_and_followed_when_the_server_starts_again(
    inside: Page, create: Callable[..., Any], stack: Stack
) -> None:
    page = inside
    short, long = create(n_steps=2, learning_rate=1e-5).id, create(n_steps=2000).id
    page.goto(f"/#/job/{long}")
    expect(page.get_by_role("img", name=re.compile("^Reward, "))).to_be_visible()
    before = step(page)
    api = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "uvicorn" in " ".join(process.info["cmdline"] or [])
        and any(str(stack.data_dir) in " ".join(parent.cmdline()) for parent in process.parents())
    ]
    assert api
    for process in api:
        process.kill()
    page.wait_for_function(
        "before => Number(document.querySelector('.facts').innerText.match(/(\\d+)\\/2000/)[1]) > before + 3",
        arg=before,
    )
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".status")).to_have_text("cancelled")
    page.goto("/#/jobs")
    for id in (short, long):
        page.get_by_label(f"Compare {id}").check()
    page.get_by_role("link", name="Compare 2 jobs").click()
    expect(page.get_by_role("heading", name="2 jobs")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Reward: training, at the end: ")).first).to_be_visible()
    expect(page.get_by_role("region", name="Settings that differ")).to_contain_text("learning_rate")
    page.get_by_label("Drawn over").select_option("tokens")
    assert faults(page) == []


def test_pages_fit_a_phone_and_can_be_read_by_all(inside: Page, datasets: tuple[str, str]) -> None:
    page = inside
    page.set_viewport_size({"width": 360, "height": 740})
    for name, heading, scheme in (
        ("jobs", "Jobs", "dark"),
        ("new", "New job", "dark"),
        ("files", "Files", "light"),
        ("models", "Models", "light"),
        ("usage", "Usage", "light"),
        ("chat", "Chat", "light"),
    ):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(f"/#/{name}")
        page.get_by_role("heading", name=heading, level=1).wait_for()
        page.locator("main").locator("table, form, pre, p").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        assert faults(page) == [], name
