"""The dashboard in a browser, on the whole stack."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from openai import OpenAI
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.e2e.conftest import Stack, troll

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


@pytest.fixture(scope="module")
def admin_key(stack: Stack) -> str:
    """Of the organisation of the stack, which operates it."""
    name = json.loads(troll_of(stack, "admin", "organizations", "--json"))[0]["name"]
    troll_of(stack, "admin", "operators", "add", name)
    made = troll_of(stack, "admin", "keys", "create", "--organization", name, "--name", "browser", "--json")
    return str(json.loads(made)["key"])


def troll_of(stack: Stack, *command: str) -> str:
    done = troll(*command, "--data-dir", str(stack.data_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def administering(page: Page, admin_key: str) -> Page:
    sign_in(page, admin_key)
    expect(page.get_by_role("heading", name="Members", level=1)).to_be_visible()
    page.on("dialog", lambda dialog: dialog.accept())
    return page


def go(page: Page, link: str) -> None:
    """Opens the page of that name, and waits until it is there: pages have inputs of the same names."""
    page.get_by_role("link", name=link, exact=True).click()
    page.get_by_role("heading", name=link, level=1, exact=True).wait_for()


def faults(page: Page) -> list[str]:
    """What axe finds serious, in words."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['help']}" for each in found if each["impact"] in ("serious", "critical")]


def step(page: Page) -> int:
    told = re.search(r"(\d+)/\d+", page.locator(".facts").inner_text())
    return int(told[1]) if told else 0


NOTICES = """
window.notices = [];
const place = document.getElementById("notice");
new MutationObserver(() => place.textContent && notices.push(place.textContent)).observe(place, { childList: true });
"""


def held(page: Page, pattern: str) -> Callable[[], None]:
    """Holds requests to `pattern` back until what is returned is called."""
    waiting: list[Route] = []
    is_held = True

    def handle(route: Route) -> None:
        waiting.append(route) if is_held else route.continue_()

    def let_go() -> None:
        nonlocal is_held
        is_held = False
        for route in waiting:
            route.continue_()

    page.route(pattern, handle)
    return let_go


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
    expect(page.locator(".status")).to_have_text("running")
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


def test_an_administrator_adds_a_member_who_gets_a_key_in_a_project(administering: Page) -> None:
    page = administering
    assert page.get_by_role("link", name="Jobs").is_hidden()
    go(page, "Projects")
    page.get_by_label("Name", exact=True).fill("browsers")
    page.get_by_role("button", name="Make a project").click()
    page.get_by_role("link", name="Members of browsers").wait_for()

    go(page, "Members")
    page.get_by_label("E-mail").fill("ada@acme.example")
    page.get_by_label("Name", exact=True).fill("Ada")
    page.get_by_role("button", name="Add a member").click()
    people = page.get_by_role("region", name="Members of the organization")
    expect(people).to_contain_text("ada@acme.example")
    page.get_by_role("combobox", name="Project", exact=True).select_option(label="browsers")
    # A label that encloses a list holds its options' text too, once they are there; the list's name does not.
    page.get_by_role("combobox", name="Member", exact=True).select_option(label="Ada (ada@acme.example)")
    page.get_by_label("Role in the project").select_option("reader")
    page.get_by_role("button", name="Let them in").click()
    inside = page.get_by_role("region", name="Members of the project")
    expect(inside).to_contain_text("ada@acme.example")
    page.get_by_label("Role of ada@acme.example in the project").select_option("member")
    page.get_by_label("Name of the program").fill("nightly")
    page.get_by_role("button", name="Make an account with a key").click()
    expect(page.get_by_text("only time that it is shown")).to_contain_text("sk-troll-")
    page.reload()
    page.get_by_role("combobox", name="Project", exact=True).select_option(label="browsers")
    expect(page.get_by_label("Role of ada@acme.example in the project")).to_have_value("member")

    go(page, "Keys")
    page.get_by_role("combobox", name="Project", exact=True).select_option(label="browsers")
    expect(page.get_by_label("Whose it is")).to_contain_text("nightly, service account")
    page.get_by_label("Whose it is").select_option(label="Ada, member")
    page.get_by_label("What it is for").fill("notebook")
    page.get_by_label("manage").uncheck()
    page.get_by_role("button", name="Make a key").click()
    shown = page.get_by_text("only time that it is shown").locator("code").inner_text()
    keys = page.get_by_role("region", name="API keys of the project")
    row = keys.get_by_role("row").filter(has_text="notebook")
    expect(row).to_contain_text("read, submit")
    expect(row).to_contain_text("never")
    assert OpenAI(base_url=f"{page.evaluate('location.origin')}/v1", api_key=shown).files.list().data == []
    row.get_by_role("button", name="End").click()
    expect(row).to_have_count(0)

    go(page, "Audit log")
    page.get_by_label("What, by its type").fill("api_key.deleted")
    page.get_by_role("button", name="Find").click()
    entries = page.get_by_role("region", name="Audit log, newest first").locator("tbody tr")
    # What was shown before stays until the answer comes.
    expect(entries.filter(has_not_text="api_key.deleted")).to_have_count(0)
    expect(entries.first).to_contain_text("browsers")


def test_an_operator_drains_a_worker_and_sees_who_waits(
    administering: Page, create: Callable[..., Any], stack: Stack
) -> None:
    page = administering
    go(page, "Workers and queue")
    workers = page.get_by_role("region", name="Training workers")
    drain = workers.get_by_role("button", name="Drain").first
    page.evaluate(NOTICES)
    queue = "**/v1/organization/queue?*"
    let_go = held(page, queue)
    # The page asks by itself, and again behind what is pressed meanwhile.
    page.wait_for_event("request", lambda request: "/organization/queue?" in request.url)
    with page.expect_request(queue):
        drain.click()
    let_go()
    expect(workers.get_by_text("draining")).to_be_visible()
    assert page.evaluate("notices") == []
    waiting = create(n_steps=1).id
    try:
        expect(page.get_by_role("region", name="Jobs that wait")).to_contain_text(waiting)
        expect(page.get_by_role("region", name="Jobs that wait")).to_contain_text("No training worker")
    finally:
        stack.client.fine_tuning.jobs.cancel(waiting)
        workers.get_by_role("button", name="Resume").click()
    expect(workers.get_by_text("draining")).to_have_count(0)


def test_who_may_only_read_sees_no_page_of_administrators(page: Page, stack: Stack, admin_key: str) -> None:
    client = OpenAI(base_url=str(stack.client.base_url), api_key="none", admin_api_key=admin_key)
    organization = client.admin.organization
    project = next(each for each in organization.projects.list() if each.name == "Default project")
    body = {"name": "reads", "scopes": ["read"]}
    made: Any = client.post(
        f"/organization/projects/{project.id}/api_keys",
        cast_to=object,
        body=body,
        options={"headers": {"Authorization": f"Bearer {admin_key}"}},
    )
    sign_in(page, made["value"])
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    for hidden in ("Members", "Projects", "Keys", "Workers and queue", "Audit log", "New job", "Chat"):
        assert page.get_by_role("link", name=hidden, exact=True).is_hidden(), hidden
    for name in ("members", "projects", "keys", "queue", "audit", "new"):
        page.goto(f"/#/{name}")
        expect(page.get_by_role("heading", name="Not for you")).to_be_visible()
    refused = page.evaluate("fetch('/v1/organization/users').then((answer) => answer.status)")
    assert refused == 403


def test_administrators_pages_fit_a_phone_and_can_be_read_by_all(administering: Page) -> None:
    page = administering
    page.set_viewport_size({"width": 360, "height": 740})
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        for name, heading in (
            ("members", "Members"),
            ("projects", "Projects"),
            ("keys", "Keys"),
            ("usage", "Usage"),
            ("queue", "Workers and queue"),
            ("audit", "Audit log"),
        ):
            page.goto(f"/#/{name}")
            page.get_by_role("heading", name=heading, level=1).wait_for()
            page.locator("main table").first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
            assert faults(page) == [], (name, scheme)


def test_a_part_of_a_run_is_looked_at_with_the_keyboard_alone(inside: Page, create: Callable[..., Any]) -> None:
    page = inside
    job = create(n_steps=40, learning_rate=1e-5)
    page.goto(f"/#/job/{job.id}")
    page.get_by_role("heading", name=job.id, level=1).wait_for()
    expect(page.locator(".status")).to_have_text("succeeded")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "start_step=" in request.url else None)
    page.get_by_role("button", name="Zoom in").press("Enter")
    part = page.get_by_role("group", name="Part of the run that is shown").get_by_role("status")
    expect(part).to_have_text(re.compile(r"^[\d.]+ to [\d.]+$"))
    low, high = (float(each) for each in part.inner_text().split(" to "))
    assert 1 < low < high < 40
    page.get_by_role("button", name="Later").press("Enter")
    expect(part).not_to_have_text(f"{low:g} to {high:g}")
    page.get_by_role("button", name="All of the run").press("Enter")
    expect(part).to_have_text("")
    assert asked
    assert faults(page) == []


def test_what_is_pressed_before_a_page_has_come_is_not_done_in_another_project(administering: Page) -> None:
    page = administering
    go(page, "Projects")
    for name in ("first", "second"):
        page.get_by_label("Name", exact=True).fill(name)
        page.get_by_role("button", name="Make a project").click()
        page.get_by_role("link", name=f"Keys of {name}").wait_for()
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)

    page.get_by_role("link", name="Keys of first").click()
    page.get_by_label("Whose it is").select_option("nobody")
    let_go = held(page, "**/service_accounts?*")
    page.get_by_role("combobox", name="Project", exact=True).select_option(label="second")
    page.get_by_label("What it is for").fill("too fast")
    page.get_by_role("button", name="Make a key").click()
    assert posted == []
    let_go()
    page.get_by_label("Whose it is").select_option("nobody")
    expect(page.get_by_label("What it is for")).to_have_value("too fast")
    page.get_by_role("button", name="Make a key").click()
    expect(page.get_by_role("region", name="API keys of the project")).to_contain_text("too fast")
    second = page.get_by_role("combobox", name="Project", exact=True).input_value()
    assert [url for url in posted if second not in url] == []


def test_of_two_projects_chosen_the_one_that_is_chosen_is_shown_whichever_answers_first(administering: Page) -> None:
    page = administering
    go(page, "Projects")
    page.get_by_label("Name", exact=True).fill("slow")
    page.get_by_role("button", name="Make a project").click()
    page.get_by_role("link", name="Members of slow").wait_for()
    go(page, "Members")
    page.get_by_label("Name of the program").fill("of the default project")
    page.get_by_role("button", name="Make an account with a key").click()
    accounts = page.get_by_role("region", name="Service accounts of the project")
    expect(accounts).to_contain_text("of the default project")
    choice = page.get_by_role("combobox", name="Project", exact=True)
    default, slow = choice.input_value(), page.get_by_role("option", name="slow").get_attribute("value")
    let_go = held(page, f"**/{slow}/service_accounts?*")
    choice.select_option(label="slow")
    expect(accounts).to_have_count(0)
    choice.select_option(default)
    expect(accounts).to_contain_text("of the default project")
    let_go()
    page.wait_for_load_state("networkidle")
    expect(accounts).to_contain_text("of the default project")


def test_a_button_that_is_pressed_twice_makes_one_job(inside: Page, datasets: tuple[str, str], stack: Stack) -> None:
    page = inside
    go(page, "New job")
    page.get_by_label("Base model").select_option(stack.model)
    page.get_by_label("Training file").select_option(datasets[0])
    page.get_by_label("Validation file").select_option(datasets[1])
    page.get_by_label("Settings").fill('{"n_steps": 1}')
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
    let_go = held(page, "**/v1/fine_tuning/jobs")
    create = page.get_by_role("button", name="Create the job")
    create.click()
    create.click()
    let_go()
    expect(page.get_by_role("heading", name="ftjob-")).to_be_visible()
    assert len(posted) == 1
    page.get_by_role("button", name="Cancel").click()


def test_what_is_read_stays_in_place_while_the_list_is_drawn_again(
    inside: Page, create: Callable[..., Any], stack: Stack
) -> None:
    page = inside
    page.set_viewport_size({"width": 360, "height": 740})
    jobs = page.get_by_role("region", name="Jobs")
    first = create(n_steps=2000).id
    jobs.get_by_label(f"Compare {first}").check()
    jobs.evaluate("region => (region.scrollLeft = 100)")
    second = create(n_steps=1).id
    expect(jobs).to_contain_text(second)
    assert jobs.evaluate("region => region.scrollLeft") == 100
    expect(jobs.get_by_label(f"Compare {first}")).to_be_checked()
    expect(jobs.get_by_label(f"Compare {first}")).to_be_focused()
    expect(jobs.get_by_label(f"Compare {second}")).not_to_be_checked()
    for id in (first, second):
        stack.client.fine_tuning.jobs.cancel(id)


def test_a_page_that_is_opened_while_the_server_is_away_comes_by_itself(inside: Page) -> None:
    page = inside
    page.route("**/dashboard/access", lambda route: route.abort())
    page.get_by_role("link", name="Files", exact=True).click()
    expect(page.locator("#notice")).to_contain_text("cannot be reached. This page tries again")
    page.unroute("**/dashboard/access")
    expect(page.get_by_role("heading", name="Files", level=1)).to_be_visible()
    expect(page.locator("#notice")).to_be_empty()
