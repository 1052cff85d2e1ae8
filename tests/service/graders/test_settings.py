"""What an operator can set about graders, and which graders that allows."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from service.graders.admission import check_allowed
from service.graders.schemas import GraderError, parse_grader
from service.graders.settings import GraderSettings, JailLimits, ModelEndpoint, ScoringService, origin_of

SECRET = Path("/run/secrets/scores")
PYTHON = {"type": "python", "source": "def grade(sample, item):\n    return 1\n"}
TESTS = {"type": "code_tests", "tests": "{{item.tests}}"}
JUDGE = {"type": "score_model", "name": "j", "model": "judge", "input": [{"role": "user", "content": "x"}]}
HTTP = {"type": "http", "url": "https://scores.example.com/score"}
ALL = GraderSettings(
    jail="unshare",
    model_endpoints=(ModelEndpoint("http://judge:8000/v1", ("judge", "other")),),
    scoring_services=(ScoringService("https://scores.example.com", SECRET),),
)


def check(raw: dict[str, Any], settings: GraderSettings, **whose: Any) -> None:
    check_allowed(parse_grader(raw, "grader"), settings, "grader", **whose)


@pytest.mark.parametrize("raw", [PYTHON, TESTS, JUDGE, HTTP])
def test_what_is_set_up_is_allowed(raw: dict[str, Any]) -> None:
    check(raw, ALL)


@pytest.mark.parametrize(
    ("raw", "param", "says"),
    [
        (PYTHON, "grader.type", "Graders of type 'python' run code and are turned off"),
        (TESTS, "grader.type", "Graders of type 'code_tests' run code and are turned off"),
        (JUDGE, "grader.model", "The model 'judge' is not offered as a grader. This server offers none."),
        (HTTP, "grader.url", "'https://scores.example.com:443' is not a scoring service"),
    ],
)
def test_by_default_nothing_is(raw: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(GraderError) as error:
        check(raw, GraderSettings())
    assert error.value.param == param
    assert says in error.value.message


def test_the_graders_of_a_multi_grader_are_checked() -> None:
    with pytest.raises(GraderError) as error:
        check({"type": "multi", "graders": {"code": PYTHON}, "calculate_output": "code"}, GraderSettings())
    assert error.value.param == "grader.graders.code.type"


def test_the_models_on_offer_are_named() -> None:
    with pytest.raises(GraderError, match="Models offered: judge, other"):
        check(JUDGE | {"model": "gpt"}, ALL)


def test_graders_that_need_nothing_are_always_allowed() -> None:
    check({"type": "math_verify", "reference": "1"}, GraderSettings())


@pytest.mark.parametrize(("owner", "caller", "allowed"), [(None, "b", True), ("a", "a", True), ("a", "b", False)])
def test_a_service_may_belong_to_one_organization(owner: str | None, caller: str, allowed: bool) -> None:
    service = ScoringService("https://scores.example.com", SECRET, organization_id=owner)
    found = GraderSettings(scoring_services=(service,)).service_of(HTTP["url"], caller)
    assert (found is not None) == allowed


def test_a_run_that_was_admitted_finds_its_service() -> None:
    service = ScoringService("https://scores.example.com", SECRET, organization_id="a")
    assert GraderSettings(scoring_services=(service,)).service_of(HTTP["url"]) is not None


def test_an_endpoint_is_found_by_its_model() -> None:
    assert ALL.endpoint_of("other") is ALL.model_endpoints[0]


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Scores.Example.com/a?b", "https://scores.example.com:443"),
        ("http://h:8080", "http://h:8080"),
        ("https://[::1]:9/x", "https://[::1]:9"),
    ],
)
def test_origins(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize("url", ["ftp://h", "h:80", "https://", "https://user:pass@h", "https://h:99999", "//h"])
def test_urls_without_an_origin(url: str) -> None:
    with pytest.raises(ValueError):
        origin_of(url)


def test_plain_http_is_for_private_networks() -> None:
    with pytest.raises(ValueError, match="must be https, or private_network must be set"):
        ScoringService("http://scores.example.com", SECRET)


def test_settings_are_read_from_json_and_written_to_it() -> None:
    adapter = TypeAdapter(GraderSettings)
    assert adapter.validate_json(adapter.dump_json(ALL)) == ALL


@pytest.mark.parametrize("text", ['{"jail": "docker"}', '{"jails": "off"}', '{"jail_limits": {"seconds": 0}}'])
def test_settings_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(GraderSettings).validate_json(text)


def test_the_limits_are_those_that_the_hosted_api_published() -> None:
    limits = JailLimits()
    assert (limits.seconds, limits.memory_bytes) == (120, 2 * 1024**3)
