"""Single sign-on in a browser, with a provider on another site."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from service.accounts.service import organization_for
from service.core.db import transaction
from service.dashboard import oidc
from service.embedded.servers import Servers
from service.settings import settings
from tests import oidc as provider_of_tests
from tests.contract.conftest import Server
from tests.e2e.test_dashboard import CHROMIUM, FLAGS
from tests.oidc import CLIENT, SECRET
from tests.service.dashboard.test_oidc import EMAIL, configure, invite

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture
def page(database: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A browser at the dashboard, which is at 127.0.0.1; the provider is at localhost."""
    with provider_of_tests.serve() as provider, sync_playwright() as playwright:
        provider.origin = provider.origin.replace("127.0.0.1", "localhost")
        configure(monkeypatch, oidc_issuer=provider.origin, oidc_client_id=CLIENT, oidc_client_secret=SECRET)
        configure(monkeypatch, oidc_organization="acme", public_url="http://127.0.0.1")
        server = Server()
        home = server.base_url.removesuffix("/v1")
        configure(monkeypatch, public_url=home)
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page(base_url=home)
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        yield page
        chromium.close()
        server.stop()
    oidc._known.clear()
    monkeypatch.undo()
    settings.cache_clear()


def test_a_person_signs_in_makes_a_key_and_signs_out(page: Page) -> None:
    with transaction("troll_operator") as session:
        organization_for(session, "acme")
    page.goto("/#/files")
    page.get_by_role("link", name="Single sign-on").click()
    expect(page.get_by_role("alert").filter(has_text="not invited")).to_be_visible()
    invite()
    page.goto("/#/files")
    page.get_by_role("link", name="Single sign-on").click()
    # The page that they wanted, after the way to another site and back.
    expect(page.get_by_role("heading", name="Files", level=1)).to_be_visible()
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("link", name="Account").click()
    expect(page.get_by_text(EMAIL)).to_be_visible()
    page.get_by_label("What it is for").fill("laptop")
    page.get_by_label("manage").uncheck()
    page.get_by_role("button", name="Make a key").click()
    expect(page.get_by_role("region", name="Your API keys")).to_contain_text("laptop")
    key = page.get_by_text("only time that it is shown").locator("code").inner_text()
    assert page.request.get("/v1/files", headers={"Authorization": f"Bearer {key}"}).ok
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.request.get("/v1/files").status == 401
