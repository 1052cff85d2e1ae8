"""What whoever starts a stack wants of the jail, and what TROLL_GRADERS says of it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.embedded import jail
from service.embedded.jail import Jail
from service.graders.configured import grader_settings

LANES = {"jail_lanes": 3}


@pytest.fixture
def graders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``graders(settings)`` sets TROLL_GRADERS, or leaves it unset for None."""

    def configure(settings: Any) -> None:
        if settings is None:
            monkeypatch.delenv("TROLL_GRADERS", raising=False)
        else:
            monkeypatch.setenv("TROLL_GRADERS", settings if isinstance(settings, str) else json.dumps(settings))
        grader_settings.cache_clear()

    yield configure
    monkeypatch.undo()
    grader_settings.cache_clear()


@pytest.mark.parametrize(
    ("settings", "choice", "tier", "required"),
    [
        (None, Jail.AUTO, "unshare", False),
        (None, Jail.ON, "unshare", True),
        (None, Jail.OFF, "off", False),
        (LANES, Jail.AUTO, "unshare", False),
        (LANES, Jail.OFF, "off", False),
        ({"jail": "off"}, Jail.AUTO, "off", False),
        ({"jail": "off"}, Jail.ON, "unshare", True),
        ({"jail": "bubblewrap"}, Jail.AUTO, "bubblewrap", True),
        ({"jail": "bubblewrap"}, Jail.ON, "bubblewrap", True),
        ({"jail": "bubblewrap"}, Jail.OFF, "off", False),
    ],
)
def test_the_jail_that_is_tried(graders: Any, settings: Any, choice: Jail, tier: str, required: bool) -> None:
    graders(settings)
    wanted = jail.wanted(choice)
    assert (wanted.settings.jail, wanted.required) == (tier, required)
    assert bool(wanted.why_off) == (tier == "off")


def test_other_settings_of_graders_stay(graders: Any) -> None:
    graders({**LANES, "model_endpoints": [{"base_url": "http://judge/v1", "models": ["j"], "api_key_file": "/k"}]})
    given = jail.wanted(Jail.AUTO).settings
    graders(jail.variables(given)["TROLL_GRADERS"])
    assert grader_settings() == given
    assert (given.jail_lanes, given.model_endpoints[0].models) == (3, ("j",))


@pytest.mark.parametrize("text", ["{", "5", '{"jail": "docker"}', '{"jails": "off"}'])
def test_settings_that_cannot_be_read_are_told(graders: Any, text: str) -> None:
    graders(text)
    with pytest.raises(ValueError, match="TROLL_GRADERS cannot be read"):
        jail.wanted(Jail.AUTO)


def test_the_note_is_one_line() -> None:
    assert jail.note("unshare", "").startswith("Python graders and code tests run in a jail (unshare)")
    assert "are off: no namespaces." in jail.note("off", "no namespaces")
