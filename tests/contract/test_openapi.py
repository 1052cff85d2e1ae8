"""The OpenAPI document against the API that it describes: generated requests to every operation, on real servers.

No answer is a server error, and each has a documented status, content type and shape. About half of the ids in paths
are replaced by those of real objects, so that more than 'not found' is seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import openai
import pytest
import schemathesis
from celery.contrib.testing.worker import start_worker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS as KNOWN_CHECKS
from schemathesis.checks import load_all_checks

from service.accounts import repository as accounts
from service.accounts.models import Project
from service.accounts.service import KeyOwner, create_key, make_key
from service.administration import service as administration
from service.core.broker import CONTROL_QUEUE
from service.core.db import transaction
from service.core.ids import new_id
from service.embedded.servers import Servers
from service.scheduling import repository as scheduling
from service.settings import settings as service_settings
from tests import factories
from tests.conftest import empty
from tests.contract.conftest import Server
from tests.workers.conftest import use_stub
from workers.jobs import supervisor

EXAMPLES = settings().max_examples // 5
TOLERATED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
load_all_checks()
CHECKS = [
    KNOWN_CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
    )
]


@dataclass(frozen=True)
class Seeded:
    """A key of a project and one that administers, and an id of something real for each path parameter."""

    key: str
    admin_key: str
    ids: dict[str, str]


@pytest.fixture(scope="module")
def seeded(server: Server, servers: Servers) -> Iterator[Seeded]:
    """One organisation with one of each thing, for all operations, and a control worker beside it."""
    from workers.app import app as celery

    empty(servers)
    with transaction("troll_operator") as session:
        key, _, organization = create_key(session, organization="generated", name="requests")
        accounts.set_operating(session, organization.id, operates=True)
        project = Project(id=new_id("proj_"), organization_id=organization.id, name="other")
        accounts.add(session, project)
        admin_key, _ = make_key(session, KeyOwner(organization.id, None), name="administers")
        for_one = make_key(session, KeyOwner(organization.id, project.id), name="generated")[1]
        other_admin = make_key(session, KeyOwner(organization.id, None), name="generated")[1]
        account, _ = administration.make_service_account(
            session, project.id, "generated", with_key=False, expires_in=None
        )
        user = administration.add_user(session, organization.id, email="g@example.com", name="g", role="reader")
        administration.add_member(session, project.id, user_id=user.id, email=None, role="member")
        administered = {
            "project_id": project.id,
            "user_id": user.id,
            "service_account_id": account.id,
            "api_key_id": for_one.id,
            "key_id": other_admin.id,
            "worker": "training@one",
        }
    with transaction("troll_worker") as session:
        scheduling.register(session, administered["worker"], gpus=1, engines=["transformers"], gpu_bytes=0)
    with (
        pytest.MonkeyPatch.context() as patch,
        openai.OpenAI(api_key=key, base_url=server.base_url) as client,
        start_worker(celery, queues=[CONTROL_QUEUE], pool="threads", concurrency=2, perform_ping_check=False),
    ):
        use_stub(patch)
        yield Seeded(key, admin_key, _make_one_of_each(client, project.id) | administered)


def _make_one_of_each(client: openai.OpenAI, project: str) -> dict[str, str]:
    rows = factories.jsonl(factories.rows(8))
    file = client.files.create(file=rows, purpose="fine-tune").id
    other = client.files.create(file=factories.jsonl(factories.rows(4, start=50)), purpose="fine-tune").id
    model = factories.offer_model(service_settings().models_dir)
    job = client.fine_tuning.jobs.create(
        model=model, training_file=file, validation_file=other, method=cast(Any, factories.method())
    ).id
    supervisor.run("worker-1")
    tuned = client.fine_tuning.jobs.retrieve(job).fine_tuned_model
    assert tuned is not None
    upload = client.uploads.create(bytes=10, filename="f", mime_type="text/plain", purpose="fine-tune").id
    hook = client.webhooks.create(name="h", url="https://localhost:9/", event_types=["fine_tuning.job.failed"]).id
    return {
        "file_id": file,
        "fine_tuning_job_id": job,
        "upload_id": upload,
        "webhook_endpoint_id": hook,
        "model": tuned,
        "fine_tuned_model_checkpoint": tuned,
        "permission_id": client.fine_tuning.checkpoints.permissions.create(tuned, project_ids=[project]).data[0].id,
        "name": "config.json",
        "export_id": cast(Any, client.post(f"/models/{tuned}/exports", cast_to=object, body={"format": "huggingface"}))[
            "id"
        ],
    }


def operations() -> list[Any]:
    """Every operation of the document, without asking a server for it."""
    from service.app import create_app

    schema = schemathesis.openapi.from_dict(create_app().openapi())
    return [cast(Any, result).ok() for result in schema.get_all_operations()]


@pytest.mark.hypothesis
@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.label)
def test_every_answer_is_a_documented_one(operation: Any, server: Server, seeded: Seeded) -> None:
    key = seeded.admin_key if operation.path.startswith("/v1/organization") else seeded.key
    requests = st.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode])

    @given(case=requests, use_real=st.booleans())
    @settings(max_examples=EXAMPLES, suppress_health_check=TOLERATED)
    def check(case: Any, use_real: bool) -> None:
        for name in (case.path_parameters or {}) if use_real else ():
            case.path_parameters[name] = seeded.ids[name]
        case.call_and_validate(
            base_url=server.base_url.removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
            checks=CHECKS,
        )

    check()


def test_every_operation_needs_a_key_but_those_of_health() -> None:
    open_to_all = {operation.label for operation in operations() if not operation.definition.raw.get("security")}
    assert open_to_all == {"GET /healthz", "GET /readyz"}
