"""``/docs`` works without any other host: what it loads is served here, and nothing else may be loaded."""

import re

import pytest
from fastapi.testclient import TestClient


@pytest.fixture
def loaded(client: TestClient) -> list[str]:
    """What the page names for a browser to load, in order."""
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    return re.findall(r'<(?:script|link)[^>]+(?:src|href)="([^"]+)"', page.text)


def test_what_the_page_loads_is_served_here(client: TestClient, loaded: list[str]) -> None:
    kinds = {".css": "text/css", ".js": "text/javascript", ".png": "image/png"}
    assert len(loaded) == 4
    for name in loaded:
        assert "//" not in name
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-type"].startswith(kinds[name[name.rindex(".") :]])


def test_nothing_of_it_is_inline(client: TestClient) -> None:
    page = client.get("/docs").text
    assert re.findall(r"<script(?![^>]* src=)", page) == []
    assert re.findall(r"<style| style=| on\w+=", page) == []


def test_a_browser_may_load_from_here_alone(client: TestClient, loaded: list[str]) -> None:
    for path in ("docs", *loaded):
        policy = client.get(f"/{path}").headers["content-security-policy"]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'"
        assert set(" ".join(rules.values()).split()) == {"'none'", "'self'", "data:"}
        assert rules["script-src"] == "'self'"


def test_the_page_shows_this_services_document(client: TestClient) -> None:
    script = client.get("/docs/page.js").text
    (url,) = re.findall(r'url: "([^"]+)"', script)
    assert "/v1/fine_tuning/jobs" in client.get(f"/{url}").json()["paths"]
    assert "validatorUrl: null" in script


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect", "/docs/../settings.py", "/docs/__init__.py"])
def test_there_is_nothing_else(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
