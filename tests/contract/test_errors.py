"""Each way to fail reaches the caller as the right exception, with code, param, type and request id."""

from typing import Any

import openai
import pytest

from tests.contract.conftest import Official, Server


def failure(official: Official, call: Any, kind: type[openai.APIStatusError]) -> openai.APIStatusError:
    with pytest.raises(kind) as caught:
        official.ask(call())
    error = caught.value
    assert error.type
    assert error.code
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    return error


def test_bad_request(official: Official) -> None:
    call = lambda: official.client.files.create(file=b"{}", purpose="batch")  # noqa: E731
    error = failure(official, call, openai.BadRequestError)
    assert (error.param, error.type) == ("purpose", "invalid_request_error")


def test_wrong_key(official: Official) -> None:
    stranger = official.client.with_options(api_key="sk-wrong")
    error = failure(official, lambda: stranger.models.retrieve("tiny/base"), openai.AuthenticationError)
    assert (error.code, error.type) == ("invalid_api_key", "authentication_error")


def test_wrong_organisation_header(official: Official) -> None:
    stranger = official.client.with_options(organization="org-other")
    failure(official, lambda: stranger.models.retrieve("tiny/base"), openai.AuthenticationError)


def test_not_found(official: Official) -> None:
    error = failure(official, lambda: official.client.files.retrieve("file-none"), openai.NotFoundError)
    assert (error.code, error.type) == ("file_not_found", "not_found_error")


def test_an_unknown_route(official: Official) -> None:
    error = failure(official, lambda: official.client.get("/nowhere", cast_to=object), openai.NotFoundError)
    assert error.code == "unknown_url"


def test_a_method_that_a_route_lacks(official: Official) -> None:
    error = failure(official, lambda: official.client.put("/files", cast_to=object), openai.APIStatusError)
    assert (error.status_code, error.code) == (405, "method_not_allowed")


def test_a_body_of_the_wrong_type(official: Official) -> None:
    call = lambda: official.client.fine_tuning.jobs.create(model=3, training_file="f")  # noqa: E731
    error = failure(official, call, openai.BadRequestError)
    assert error.param == "model"


def test_a_page_behind_an_unknown_item(official: Official) -> None:
    call = lambda: official.client.fine_tuning.jobs.list(after="ftjob-none")  # noqa: E731
    assert failure(official, call, openai.BadRequestError).param == "after"


def test_what_may_not_be_deleted(official: Official, model: str) -> None:
    error = failure(official, lambda: official.client.models.delete(model), openai.PermissionDeniedError)
    assert (error.code, error.type) == ("model_not_deletable", "permission_error")


def test_a_body_that_is_too_large(official: Official, body: dict[str, Any]) -> None:
    large = {**body, "method": {"type": "reinforcement", "padding": "x" * 2**20}}
    error = failure(official, lambda: official.client.fine_tuning.jobs.create(**large), openai.APIStatusError)
    assert (error.status_code, error.code) == (413, "request_too_large")


def test_success_has_a_request_id(official: Official, model: str) -> None:
    assert official.ask(official.client.models.retrieve(model))._request_id.startswith("req_")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.responses.retrieve("resp_1"),
        lambda client: client.responses.delete("resp_1"),
        lambda client: client.conversations.create(),
        lambda client: client.embeddings.create(model="m", input="Hi"),
        lambda client: client.batches.list(),
    ],
    ids=["response", "delete", "conversations", "embeddings", "batches"],
)
def test_what_is_out_of_scope_names_an_alternative(server: Server, acme: openai.OpenAI, call: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        call(acme)
    assert refusal.value.code == "not_served"
    assert "/v1/" in refusal.value.message


def said(part: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [part]}]


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
FUNCTION = {"type": "function", "function": {"name": "get weather"}}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/fine_tuning/jobs", {"training_file": "f", "suffix": ""}, "suffix", "at least 1 character"),
        ("/fine_tuning/jobs", {"training_file": "f", "method": "reinforcement"}, "method", "should be an object"),
        ("/fine_tuning/jobs", {"training_file": "f", "seed": "x"}, "seed", "should be a whole number"),
        ("/fine_tuning/jobs", {"training_file": "f", "integrations": ["wandb"]}, "integrations.0", "an object"),
        ("/chat/completions", {"messages": ["Hello"]}, "messages.0", "should be an object"),
        (
            "/chat/completions",
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content",
            "a string or a list",
        ),
        ("/chat/completions", {"messages": HELLO, "response_format": "json"}, "response_format", "an object"),
        ("/responses", {"input": 5}, "input", "should be a string or a list"),
        ("/responses", {"input": "x", "text": {"format": "json_object"}}, "text.format", "should be an object"),
        (
            "/fine_tuning/jobs",
            {"training_file": "f", "suffix": "my model"},
            "suffix",
            "use only the letters A to Z and a to z, digits",
        ),
        ("/chat/completions", {"messages": said(IMAGE)}, "messages.0.content.0.type", "text only"),
        ("/chat/completions", {"messages": HELLO, "tools": [FUNCTION]}, "tools.0.function.name", "use only 1 to 64"),
        ("/chat/completions", {"messages": HELLO, "logit_bias": {"fox": 1}}, "logit_bias", "use only token ids"),
        ("/responses", {"input": said({"type": "input_image"})}, "input.0.content.0.type", "text only"),
        ("/responses", {"input": said({"type": "text", "text": "x"})}, "input.0.content.0.type", "'input_text'"),
        ("/responses", {"input": [{"type": "web_search_call"}]}, "input.0", "message, function_call"),
        ("/responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools.0.type", "functions of yours"),
    ],
)
def test_a_field_that_is_wrong_is_named_and_told_in_words(
    acme: openai.OpenAI, path: str, body: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.post(path, cast_to=object, body={"model": "m", **body})
    error: Any = refusal.value.body
    assert error["param"].startswith(param)
    assert says in error["message"]
    for foreign in ("pattern", "^[", "dictionary", "Tag", "str'"):
        assert foreign not in error["message"]
