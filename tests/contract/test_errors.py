"""Each way to fail reaches the caller as the right exception, with code, param, type and request id."""

from typing import Any

import openai
import pytest

from tests.contract.conftest import Official, Server

CHECKPOINT = "ft:a/b:c::12345678:ckpt-step-2"


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
        lambda client: client.responses.create(model="m", input="Hi"),
        lambda client: client.embeddings.create(model="m", input="Hi"),
        lambda client: client.batches.list(),
        lambda client: client.fine_tuning.checkpoints.permissions.create(CHECKPOINT, project_ids=["p"]),
        lambda client: client.fine_tuning.checkpoints.permissions.list(CHECKPOINT, project_id="p", limit=2),
        lambda client: client.fine_tuning.checkpoints.permissions.delete(
            "cp_1", fine_tuned_model_checkpoint=CHECKPOINT
        ),
    ],
    ids=["responses", "embeddings", "batches", "share", "shares", "unshare"],
)
def test_what_is_out_of_scope_names_an_alternative(server: Server, acme: openai.OpenAI, call: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        call(acme)
    assert refusal.value.code == "not_served"
    assert "/v1/" in refusal.value.message
