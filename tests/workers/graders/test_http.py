"""``http``: what a scoring service is sent, what its answers mean, and where requests may not go."""

import base64
import dataclasses
import functools
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from service.graders.schemas import GraderError, parse_grader
from service.graders.settings import GraderSettings, ScoringService
from tests.workers.graders.servers import CERTIFICATE, Answer, Asked, serve
from workers.graders import Grade, GraderSample, build, http
from workers.network.addresses import ForbiddenAddressError, resolve

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
SAMPLES = [GraderSample({"answer": str(i)}, f"said {i}") for i in range(3)]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_DELAY", 0.001)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


def settings(origin: str, secret_file: Path, private_network: bool = True) -> GraderSettings:
    return GraderSettings(scoring_services=(ScoringService(origin, secret_file, private_network=private_network),))


def grade(
    answer: Callable[[Asked], Any],
    secret_file: Path,
    samples: list[GraderSample] = SAMPLES,
    release: Callable[[], None] = lambda: None,
) -> tuple[list[Grade], list[Asked]]:
    with serve(answer) as server:
        definition = parse_grader({"type": "http", "url": f"{server.origin}/score?team=a"}, "grader")
        grades = build(definition, settings(server.origin, secret_file)).grade(samples)
        release()
        return grades, server.asked


def test_a_batch_is_one_request_and_its_rewards_come_back_in_order(secret_file: Path) -> None:
    grades, asked = grade(lambda _: {"rewards": [0.5, -2, 1e3]}, secret_file)
    assert grades == [Grade(0.5), Grade(-2.0), Grade(1000.0)]
    assert [each.path for each in asked] == ["/score?team=a"]
    assert asked[0].json["samples"][1] == {"sample": {"output_text": "said 1"}, "item": {"answer": "1"}}


def test_large_batches_are_split(secret_file: Path) -> None:
    samples = [GraderSample({"n": i}, "") for i in range(150)]
    grades, asked = grade(
        lambda request: {"rewards": [each["item"]["n"] for each in request.json["samples"]]}, secret_file, samples
    )
    assert [each.reward for each in grades] == list(range(150))
    assert len(asked) == 3


def test_requests_carry_a_signature_that_the_official_client_verifies(secret_file: Path) -> None:
    _, (asked,) = grade(lambda _: {"rewards": [0, 0, 0]}, secret_file)
    webhooks = openai.OpenAI(api_key="none").webhooks
    webhooks.verify_signature(asked.body, asked.headers, secret=SECRET)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        webhooks.verify_signature(asked.body + b" ", asked.headers, secret=SECRET)


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("whsec_\n", "is empty"), ("whsec_abc", "no Base64")])
def test_a_file_without_a_usable_secret_signs_nothing(secret_file: Path, text: str, says: str) -> None:
    secret_file.write_text(text)
    with pytest.raises(OSError, match=says):
        grade(lambda _: {"rewards": [0, 0, 0]}, secret_file)


def test_a_lone_surrogate_in_an_answer_can_be_sent(secret_file: Path) -> None:
    (only,), _ = grade(lambda _: {"rewards": [1]}, secret_file, [GraderSample({}, "\ud800")])
    assert only.reward == 1.0


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_transient_failures_are_tried_again_under_the_same_id(status: int, secret_file: Path) -> None:
    answers = iter([Answer(status), Answer(status), {"rewards": [1, 1, 1]}])
    grades, asked = grade(lambda _: next(answers), secret_file)
    assert [each.reward for each in grades] == [1.0, 1.0, 1.0]
    assert len({each.headers["webhook-id"] for each in asked}) == 1


@pytest.mark.parametrize(
    ("answer", "attempts", "says"),
    [
        (Answer(503), http.ATTEMPTS, "answered with status 503"),
        (Answer(404), 1, "answered with status 404"),
        (Answer(302, headers={"location": "http://169.254.169.254/"}), 1, "answered with status 302"),
        (Answer(body=b"<html>"), 1, "not JSON"),
        (Answer(body=b"\xff"), 1, "not JSON"),
        (Answer(body=b"[" + b"1," * 600_000 + b"1]"), 1, "more than 1048576 bytes"),
        ({"rewards": [1, 2]}, 1, "did not answer with 3 'rewards'"),
        ({"rewards": {"0": 1}}, 1, "did not answer with 3 'rewards'"),
        ([1, 2, 3], 1, "did not answer with 3 'rewards'"),
    ],
)
def test_a_service_that_fails_gives_no_rewards(answer: Any, attempts: int, says: str, secret_file: Path) -> None:
    grades, asked = grade(lambda _: answer, secret_file)
    assert len(asked) == attempts
    for each in grades:
        assert (each.reward, each.error, each.sample_at_fault) == (None, "other_error", False)
        assert each.detail is not None
        assert says in each.detail


@pytest.mark.parametrize("reward", [None, True, "1", [], {"score": 1}, 10**400])
def test_a_reward_that_is_no_number_fails_that_sample_only(reward: Any, secret_file: Path) -> None:
    grades, _ = grade(lambda _: {"rewards": [1, reward, 2]}, secret_file)
    assert [each.reward for each in grades] == [1.0, None, 2.0]
    assert grades[1].error == "other_error"


def test_the_service_can_say_why_a_sample_has_no_reward(secret_file: Path) -> None:
    grades, _ = grade(lambda _: {"rewards": [{"error": "no such row"}, 1, 1]}, secret_file)
    assert grades[0].detail == "The scoring service: no such row"


def test_a_batch_out_of_time_is_given_up(secret_file: Path) -> None:
    with serve(lambda _: {"rewards": [1] * 64}) as server:
        definition = parse_grader({"type": "http", "url": server.origin}, "grader")
        allowed = dataclasses.replace(settings(server.origin, secret_file), batch_seconds=1e-9)
        grades = build(definition, allowed).grade(SAMPLES)
    assert {each.detail for each in grades} == {"The scoring service was not asked: the time of the batch was up."}
    assert server.asked == []


def test_a_service_that_is_down_gives_no_rewards(secret_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        origin = f"http://127.0.0.1:{taken.getsockname()[1]}"
        grader = build(parse_grader({"type": "http", "url": origin}, "grader"), settings(origin, secret_file))
        assert {each.error for each in grader.grade(SAMPLES)} == {"other_error"}


@pytest.mark.parametrize(
    ("answer", "away"),
    [
        *((Answer(status), True) for status in sorted(http.AWAY)),
        *((Answer(status), False) for status in (400, 401, 403, 404, 422, 500, 501)),
        ({"rewards": [1]}, False),
        ({"rewards": [{"error": "no such row"}] * 3}, False),
        (Answer(body=b"<html>"), False),
    ],
    ids=str,
)
def test_a_service_that_is_away_is_told_from_one_that_fails(answer: Any, away: bool, secret_file: Path) -> None:
    grades, _ = grade(lambda _: answer, secret_file)
    assert {(each.reward, each.away) for each in grades} == {(None, away)}


def test_nobody_listening_and_no_such_host_are_away(secret_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        origin = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for url in (origin, "http://scores.invalid"):
            grader = build(parse_grader({"type": "http", "url": url}, "grader"), settings(url, secret_file))
            assert {each.away for each in grader.grade(SAMPLES)} == {True}


def test_a_service_that_takes_too_long_is_away(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", httpx2.Timeout(0.1))
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    held = threading.Event()
    grades, _ = grade(lambda _: held.wait(5) and {}, secret_file, release=held.set)
    assert {(each.detail, each.away) for each in grades} == {("The scoring service took too long to answer.", True)}


def test_a_service_that_is_away_is_not_asked_about_every_batch(secret_file: Path) -> None:
    grades, asked = grade(lambda _: Answer(503), secret_file, [GraderSample({"n": i}, "") for i in range(300)])
    assert ({each.away for each in grades}, len(grades), len(asked)) == ({True}, 300, http.ATTEMPTS)


def test_a_certificate_that_is_not_trusted_is_no_outage(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grades = grade_over_tls("scores.test", secret_file, monkeypatch, trusted=False)
    assert {each.away for each in grades} == {False}


def test_without_leave_private_addresses_are_not_called(secret_file: Path) -> None:
    with serve(lambda _: {"rewards": [1, 1, 1]}) as server:
        origin = f"https://localhost:{server.port}"
        grader = build(parse_grader({"type": "http", "url": origin}, "grader"), settings(origin, secret_file, False))
        details = {each.detail for each in grader.grade(SAMPLES)}
    assert details == {"The scoring service was not called: the host 'localhost' is not on the public internet."}
    assert server.asked == []


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 443)) for host in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(ForbiddenAddressError):
        resolve("scores.example.com", 443, private_network=False)


def test_the_connection_goes_to_the_address_that_was_checked(
    secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[str] = []
    real = socket.getaddrinfo

    def once(host: Any, *rest: Any, **named: Any) -> Any:
        asked_for.append(host)
        # The name leads to the server when it is checked, and to nowhere when it is looked up again.
        return real("127.0.0.1" if asked_for.count("scores.test") == 1 else host, *rest, **named)

    with serve(lambda _: {"rewards": [1, 1, 1]}) as server:
        origin = f"http://scores.test:{server.port}"
        grader = build(parse_grader({"type": "http", "url": origin}, "grader"), settings(origin, secret_file))
        monkeypatch.setattr(socket, "getaddrinfo", once)
        assert [each.reward for each in grader.grade(SAMPLES)] == [1.0, 1.0, 1.0]
    assert asked_for.count("scores.test") == 1
    assert server.asked[0].headers["host"] == f"scores.test:{server.port}"


def grade_over_tls(host: str, secret_file: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> list[Grade]:
    """Grades of a service called ``host``, which leads to the server that is ``scores.test``."""
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *rest, **named: real("127.0.0.1", *rest, **named))
    if trusted:
        context = ssl.create_default_context(cafile=CERTIFICATE)
        monkeypatch.setattr(httpx2, "Client", functools.partial(httpx2.Client, verify=context))
    with serve(lambda _: {"rewards": [1, 1, 1]}, tls=True) as server:
        origin = f"https://{host}:{server.port}"
        return build(parse_grader({"type": "http", "url": origin}, "grader"), settings(origin, secret_file)).grade(
            SAMPLES
        )


def test_the_certificate_is_checked_for_the_name_and_not_for_the_address(
    secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grades = grade_over_tls("scores.test", secret_file, monkeypatch, trusted=True)
    assert [each.reward for each in grades] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("host", "trusted"), [("scores.test", False), ("other.test", True)])
def test_a_certificate_that_is_not_trusted_or_of_another_name_is_refused(
    host: str, trusted: bool, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grades = grade_over_tls(host, secret_file, monkeypatch, trusted)
    assert {each.error for each in grades} == {"other_error"}


@pytest.mark.parametrize(
    "url",
    [
        "https://scores.example.com",
        "http://127.0.0.1:1",
        "https://127.0.0.1:2/score",
        "https://127.0.0.1.example.com:1",
    ],
)
def test_what_the_operator_does_not_list_is_refused(url: str, secret_file: Path) -> None:
    definition = parse_grader({"type": "http", "url": url}, "grader")
    with pytest.raises(GraderError, match="is not a scoring service that this server may call") as error:
        build(definition, settings("https://127.0.0.1:1", secret_file))
    assert error.value.param == "grader.url"


def test_a_secret_that_cannot_be_read_is_an_error_at_once(tmp_path: Path) -> None:
    definition = parse_grader({"type": "http", "url": "http://127.0.0.1:1"}, "grader")
    with pytest.raises(FileNotFoundError):
        build(definition, settings("http://127.0.0.1:1", tmp_path / "missing"))
