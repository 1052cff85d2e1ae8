"""``score_model`` and ``label_model``: what a judge is asked, and what its answers mean."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from service.graders.schemas import GraderError, parse_grader
from service.graders.settings import GraderSettings, ModelEndpoint
from tests.workers.graders.servers import Answer, Asked, Server, serve
from workers.graders import Grade, GraderSample, TokenUsage, build, judge

SCORE = {
    "type": "score_model",
    "name": "quality",
    "model": "judge-1",
    "input": [
        {"role": "developer", "content": "Score the answer."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Q: {{item.question}}"}, "A: {{sample.output_text}}"],
        },
    ],
}
LABEL = SCORE | {"type": "label_model", "labels": ["good", "bad", "ugly"], "passing_labels": ["good", "ugly"]}
SAMPLE = GraderSample({"question": "2+2?"}, "4")
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16, "prompt_tokens_details": {"cached_tokens": 3}}


def completion(content: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": content, "refusal": None, **message}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-1",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": said, "logprobs": None}],
        "usage": USAGE,
    }


def result(value: Any) -> dict[str, Any]:
    return completion(json.dumps({"steps": [], "result": value}))


def settings(server: Server, **fields: Any) -> GraderSettings:
    return GraderSettings(model_endpoints=(ModelEndpoint(f"{server.origin}/v1", ("judge-1",), **fields),))


def grade(raw: dict[str, Any], answer: Any, sample: GraderSample = SAMPLE) -> tuple[Grade, list[Asked]]:
    with serve(lambda _: answer) as server:
        (only,) = build(parse_grader(raw, "grader"), settings(server)).grade([sample])
        return only, server.asked


def test_the_judge_gets_the_filled_messages_and_the_schema_of_the_result() -> None:
    _, (asked,) = grade(SCORE, result(0.5))
    assert asked.path == "/v1/chat/completions"
    assert asked.json["model"] == "judge-1"
    assert asked.json["messages"] == [
        {"role": "developer", "content": "Score the answer."},
        {"role": "user", "content": "Q: 2+2?\nA: 4"},
    ]
    schema = asked.json["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["result"] == {"type": "number"}


def test_sampling_parameters_are_passed_on() -> None:
    params = {"seed": 7, "temperature": 0, "top_p": 0.5, "max_completions_tokens": 90, "reasoning_effort": "low"}
    _, (asked,) = grade(SCORE | {"sampling_params": params}, result(0.5))
    sent = {key: asked.json.get(key) for key in ("seed", "temperature", "top_p", "reasoning_effort")}
    assert sent == {"seed": 7, "temperature": 0, "top_p": 0.5, "reasoning_effort": "low"}
    assert asked.json["max_completion_tokens"] == 90


@pytest.mark.parametrize(
    ("fields", "said", "reward"),
    [({}, 0.25, 0.25), ({}, 7, 1.0), ({}, -1, 0.0), ({"range": [-1, 10]}, 7, 7.0), ({"range": [-1, 10]}, -5, -1.0)],
)
def test_scores_are_clipped_to_the_range(fields: dict[str, Any], said: float, reward: float) -> None:
    only, _ = grade(SCORE | fields, result(said))
    assert (only.reward, only.error) == (reward, None)


@pytest.mark.parametrize(("said", "reward"), [("good", 1.0), ("ugly", 1.0), ("bad", 0.0)])
def test_passing_labels_pass(said: str, reward: float) -> None:
    only, (asked,) = grade(LABEL, result(said))
    assert only.reward == reward
    schema = asked.json["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["result"]["enum"] == ["good", "bad", "ugly"]


def test_tokens_are_counted_by_model() -> None:
    only, _ = grade(SCORE, result(1))
    assert only.usage == {"judge-1": TokenUsage(prompt_tokens=11, completion_tokens=5, cached_tokens=3)}


def test_tokens_of_all_judges_of_a_multi_grader_add_up() -> None:
    multi = {"type": "multi", "graders": {"a": SCORE, "b": LABEL}, "calculate_output": "a"}
    only, _ = grade(multi, result(1))
    assert only.usage == {"judge-1": TokenUsage(prompt_tokens=22, completion_tokens=10, cached_tokens=6)}
    assert only.sub_usage == dict.fromkeys("ab", TokenUsage(11, 5, 3))
    assert (only.reward, only.sub_errors) == (1.0, {"b": "model_grader_parse_error"})


@pytest.mark.parametrize(
    ("raw", "answer", "says"),
    [
        (SCORE, completion("I give it a 7"), "it is not JSON"),
        (SCORE, completion("[1]"), "no field 'result'"),
        (SCORE, completion('{"steps": []}'), "no field 'result'"),
        (SCORE, completion(None), "it has no text"),
        (SCORE, result("0.5"), "a string, not a number"),
        (SCORE, result(True), "a boolean, not a number"),
        (SCORE, completion('{"result": NaN}'), "it is not JSON"),
        (SCORE, completion('{"steps": [{"desc', finish_reason="length"), "it was cut off"),
        (LABEL, result("great"), "none of the labels"),
        (LABEL, result(1), "none of the labels"),
    ],
)
def test_an_answer_without_a_result_is_no_reward(raw: dict[str, Any], answer: Any, says: str) -> None:
    only, _ = grade(raw, answer)
    assert (only.reward, only.error, only.sample_at_fault) == (None, "model_grader_parse_error", False)
    assert only.detail is not None
    assert says.replace("it was", "its answer was") in only.detail
    assert only.usage["judge-1"].completion_tokens == 5


def test_a_refusal_is_no_reward() -> None:
    only, _ = grade(SCORE, completion(None, refusal="I will not."))
    assert (only.reward, only.error) == (None, "model_grader_refusal_error")
    assert only.detail == "The judge refused: I will not."


@pytest.mark.parametrize("answer", [Answer(400), Answer(401), Answer(404), {"object": "error"}])
def test_an_endpoint_that_fails_gives_no_reward(answer: Any) -> None:
    only, _ = grade(SCORE, answer)
    assert (only.reward, only.error, only.sample_at_fault) == (None, "model_grader_server_error", False)


@pytest.mark.parametrize(
    ("status", "away"), [(408, True), (429, True), (502, True), (503, True), (504, True), (400, False), (500, False)]
)
def test_a_judge_that_is_away_is_told_from_one_that_fails(
    status: int, away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "RETRIES", 0)
    only, _ = grade(SCORE, Answer(status))
    assert (only.reward, only.error, only.away) == (None, "model_grader_server_error", away)
    multi = {"type": "multi", "graders": {"a": SCORE, "b": LABEL}, "calculate_output": "a"}
    only, _ = grade(multi, Answer(status))
    assert only.away is away


def test_a_judge_that_is_away_is_not_asked_about_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "RETRIES", 0)
    with serve(lambda _: Answer(503)) as server:
        allowed = GraderSettings(
            model_endpoints=(ModelEndpoint(f"{server.origin}/v1", ("judge-1",)),), model_requests=2
        )
        grades = build(parse_grader(SCORE, "grader"), allowed).grade([SAMPLE] * 40)
    assert {each.away for each in grades} == {True}
    assert len(server.asked) <= 2


def test_nobody_listening_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "RETRIES", 0)
    allowed = GraderSettings(model_endpoints=(ModelEndpoint("http://127.0.0.1:9/v1", ("judge-1",)),))
    (only,) = build(parse_grader(SCORE, "grader"), allowed).grade([SAMPLE])
    assert only.away


def test_transient_failures_are_tried_again() -> None:
    answers = iter([Answer(500, headers={"retry-after-ms": "1"}), Answer(429, headers={"retry-after-ms": "1"})])
    with serve(lambda _: next(answers, result(1))) as server:
        (only,) = build(parse_grader(SCORE, "grader"), settings(server)).grade([SAMPLE])
    assert (only.reward, len(server.asked)) == (1.0, 3)


def test_grades_are_in_the_order_of_the_samples() -> None:
    def score(asked: Asked) -> dict[str, Any]:
        return result(int(asked.json["messages"][1]["content"].split("A: ")[1]) / 100)

    with serve(score) as server:
        grader = build(parse_grader(SCORE, "grader"), settings(server))
        grades = grader.grade([GraderSample({"question": "?"}, str(number)) for number in range(40)])
    assert [each.reward for each in grades] == [number / 100 for number in range(40)]


def test_a_row_without_the_field_is_not_sent() -> None:
    only, asked = grade(SCORE, result(1), GraderSample({}, "4"))
    assert (only.error, only.sample_at_fault, asked) == ("invalid_variable_error", False, [])


def test_a_batch_out_of_time_is_given_up() -> None:
    def slowly(_: Asked) -> dict[str, Any]:
        time.sleep(0.3)
        return result(1)

    with serve(slowly) as server:
        endpoint = ModelEndpoint(f"{server.origin}/v1", ("judge-1",))
        allowed = GraderSettings(model_endpoints=(endpoint,), model_requests=1, batch_seconds=0.1)
        grades = build(parse_grader(SCORE, "grader"), allowed).grade([SAMPLE] * 3)
    assert [each.error for each in grades[1:]] == ["model_grader_server_error"] * 2
    assert len(server.asked) == 1


def test_a_judge_that_hangs_is_asked_no_longer_than_the_batch_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def hangs(_: Asked) -> dict[str, Any]:
        ended.wait(60)
        return result(1)

    with serve(hangs) as server:
        endpoint = ModelEndpoint(f"{server.origin}/v1", ("judge-1",))
        allowed = GraderSettings(model_endpoints=(endpoint,), batch_seconds=1.0)
        (only,) = build(parse_grader(SCORE, "grader"), allowed).grade([SAMPLE])
        ended.set()
    assert (only.error, only.away) == ("model_grader_server_error", True)
    assert len(server.asked) == 1


def test_the_key_of_the_endpoint_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n")
    with serve(lambda _: result(1)) as server:
        build(parse_grader(SCORE, "grader"), settings(server, api_key_file=tmp_path / "key")).grade([SAMPLE])
    assert server.asked[0].headers["authorization"] == "Bearer sk-secret"


def test_models_that_the_operator_does_not_offer_are_refused() -> None:
    with pytest.raises(GraderError, match=r"The model 'judge-1' is not offered.*none") as error:
        build(parse_grader(SCORE, "grader"))
    assert error.value.param == "grader.model"


def test_what_a_server_says_with_a_status_is_told_with_its_address() -> None:
    told = Answer(404, json.dumps({"error": {"message": "No such model: 'judge-1'."}}).encode())
    with serve(lambda _: told) as server:
        (only,) = build(parse_grader(SCORE, "grader"), settings(server)).grade([SAMPLE])
        where = f"'judge-1' at {server.origin}"
    assert only.detail == f"The judge answered with status 404 ({where}), and says: No such model: 'judge-1'."


def test_a_judge_that_is_not_there_is_told_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "RETRIES", 0)
    with serve(lambda _: None) as server:
        pass
    (only,) = build(parse_grader(SCORE, "grader"), settings(server)).grade([SAMPLE])
    assert only.away
    assert str(only.detail).startswith(f"The judge could not be reached ('judge-1' at {server.origin}): ")
    assert "refused" in str(only.detail)
