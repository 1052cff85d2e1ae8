"""Fine-tuning jobs through the official client."""

import json
from collections.abc import Iterator
from typing import Any, cast

import openai
import pytest
from openai.types.fine_tuning.reinforcement_hyperparameters_param import ReinforcementHyperparametersParam
from openai.types.fine_tuning.reinforcement_method import ReinforcementMethod
from openai.types.fine_tuning.supervised_hyperparameters import SupervisedHyperparameters
from openai.types.fine_tuning.supervised_method import SupervisedMethod
from openai.types.graders import StringCheckGrader

from service.core.db import transaction
from service.core.ids import new_id
from service.graders.configured import grader_settings
from service.jobs import repository, service
from service.jobs.models import Checkpoint
from service.jobs.repository import EventDraft
from service.settings import settings
from tests import factories
from tests.contract.conftest import Official

CLOSE = {**factories.GRADER, "type": "text_similarity", "name": "close", "evaluation_metric": "fuzzy_match"}
del CLOSE["operation"]
EXACT = {**factories.GRADER, "name": "exact"}


def multi(graders: Any, formula: str = "0.8 * exact + 0.2 * close") -> dict[str, Any]:
    return {"type": "multi", "name": "both", "graders": graders, "calculate_output": formula}


@pytest.fixture
def create(official: Official, body: dict[str, Any]) -> Any:
    return lambda **changes: official.ask(official.client.fine_tuning.jobs.create(**{**body, **changes}))


@pytest.mark.parametrize("grader", [EXACT, CLOSE], ids=["string_check", "text_similarity"])
def test_a_job_of_each_grader(create: Any, grader: dict[str, Any]) -> None:
    job = create(method=factories.method(grader))
    assert (job.object, job.status, job.error, job.result_files) == ("fine_tuning.job", "queued", None, [])
    assert job.method.reinforcement.grader.to_dict() | grader == job.method.reinforcement.grader.to_dict()


CODE = "def grade(sample, item):\n    return 1.0\n"
JUDGED = [{"role": "user", "content": "{{sample.output_text}}", "type": "message"}]
LABEL = {
    "type": "label_model",
    "name": "l",
    "model": "judge",
    "input": JUDGED,
    "labels": ["a", "b"],
    "passing_labels": ["a"],
}
ALLOWED = {
    "jail": "unshare",
    "model_endpoints": [{"base_url": "http://127.0.0.1:9/v1", "models": ["judge"]}],
    "scoring_services": [{"origin": "https://scores.example.com", "secret_file": "/nowhere"}],
}


@pytest.fixture
def every_grader_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TROLL_GRADERS", json.dumps(ALLOWED))
    grader_settings.cache_clear()
    yield
    monkeypatch.undo()
    grader_settings.cache_clear()


@pytest.mark.parametrize(
    ("grader", "typed"),
    [
        ({"type": "python", "name": "p", "source": CODE}, True),
        ({"type": "score_model", "name": "s", "model": "judge", "input": JUDGED, "range": [0, 1]}, True),
        (LABEL, False),
        ({"type": "math_verify", "name": "m", "reference": "{{item.answer}}"}, False),
        ({"type": "code_tests", "name": "c", "tests": "{{item.answer}}"}, False),
        ({"type": "http", "name": "h", "url": "https://scores.example.com/v1"}, False),
        (multi({"exact": EXACT, "judged": LABEL}, "exact + judged"), False),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_a_job_of_each_grader_that_an_operator_allows(
    connect: Any, api_key: Any, body: dict[str, Any], every_grader_allowed: None, grader: dict[str, Any], typed: bool
) -> None:
    # The strict client has no type for those of this service, for a label model by itself, and for several in a multi.
    client = connect(api_key, strict=typed)
    job = client.fine_tuning.jobs.create(**{**body, "method": factories.method(grader)})
    kept = job.to_dict()["method"]["reinforcement"]["grader"]
    assert {name: kept[name] for name in grader if name != "graders"} == {
        name: value for name, value in grader.items() if name != "graders"
    }


@pytest.mark.parametrize(
    "graders",
    [{"exact": EXACT, "close": CLOSE}, [EXACT, CLOSE]],
    ids=["dict", "list"],
)
def test_a_multi_grader_is_answered_as_a_dict(
    acme: openai.OpenAI, connect: Any, api_key: Any, body: dict[str, Any], graders: Any
) -> None:
    # The strict client's type holds one grader only, whatever the API and its guide say.
    loose = connect(api_key)
    job = loose.fine_tuning.jobs.create(**{**body, "method": factories.method(multi(graders))})
    answered = loose.fine_tuning.jobs.with_raw_response.retrieve(job.id)
    grader = answered.http_response.json()["method"]["reinforcement"]["grader"]
    assert set(grader["graders"]) == {"exact", "close"}


def test_a_multi_grader_of_one(connect: Any, api_key: Any, body: dict[str, Any]) -> None:
    loose = connect(api_key)
    job = loose.fine_tuning.jobs.create(**{**body, "method": factories.method(multi(EXACT, "exact"))})
    assert job.method.reinforcement.grader.to_dict()["graders"]["exact"]["name"] == "exact"


def test_pydantic_models_as_arguments(create: Any) -> None:
    hyperparameters: ReinforcementHyperparametersParam = {"batch_size": 4, "n_epochs": 2}
    method = ReinforcementMethod(grader=StringCheckGrader(**factories.GRADER), hyperparameters=hyperparameters)
    job = create(method={"type": "reinforcement", "reinforcement": method})
    assert job.method.reinforcement.hyperparameters.batch_size == 4


@pytest.fixture
def answered(acme: openai.OpenAI) -> dict[str, str]:
    """The file of a supervised job."""
    return {
        "training_file": acme.files.create(file=factories.jsonl(factories.answered_rows(8)), purpose="fine-tune").id
    }


def test_a_job_without_a_method_is_supervised(official: Official, model: str, answered: dict[str, str]) -> None:
    job = official.ask(official.client.fine_tuning.jobs.create(model=model, **answered))
    assert (job.method.type, job.validation_file, job.method.reinforcement) == ("supervised", None, None)
    assert job.method.supervised.hyperparameters.n_epochs == job.hyperparameters.n_epochs == 3
    assert official.ask(official.client.fine_tuning.jobs.retrieve(job.id)) == job


def test_a_supervised_job_with_pydantic_models(official: Official, model: str, answered: dict[str, str]) -> None:
    method = SupervisedMethod(hyperparameters=SupervisedHyperparameters(batch_size=4, n_epochs="auto"))
    create = official.client.fine_tuning.jobs.create
    job = official.ask(create(model=model, method={"type": "supervised", "supervised": method}, **answered))
    assert job.method.supervised.hyperparameters.batch_size == 4


def test_dpo_says_what_is_served(official: Official, model: str, answered: dict[str, str]) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        official.ask(
            official.client.fine_tuning.jobs.create(model=model, method={"type": "dpo", "dpo": {}}, **answered)
        )
    assert refusal.value.param == "method.type"
    assert "'supervised' or 'reinforcement'" in refusal.value.message


def test_explicit_nulls_count_as_absent(create: Any) -> None:
    job = create(suffix=None, seed=None, metadata=None, integrations=None)
    assert 0 <= job.seed < 2**31


def test_own_hyperparameters_ride_along(create: Any) -> None:
    job = create(method=factories.method(kl_bound=0.1, group_size=4))
    assert job.method.reinforcement.hyperparameters.model_extra["kl_bound"] == 0.1


def test_an_unknown_hyperparameter_is_named(create: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        create(method=factories.method(warp=9))
    assert refusal.value.param == "method.reinforcement.hyperparameters.warp"


@pytest.fixture
def wandb_on(monkeypatch: pytest.MonkeyPatch, database: object) -> Iterator[None]:
    monkeypatch.setenv("TROLL_WANDB_MODE", "offline")
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


def wandb(project: str = "additions", **more: Any) -> dict[str, Any]:
    return {"type": "wandb", "wandb": {"project": project, **more}}


def mlflow(experiment: str, **more: Any) -> dict[str, Any]:
    return {"type": "mlflow", "mlflow": {"experiment": experiment, **more}}


def trackio(project: str, **more: Any) -> dict[str, Any]:
    return {"type": "trackio", "trackio": {"project": project, **more}}


def test_integrations_are_answered_with_their_runs(official: Official, create: Any, wandb_on: None) -> None:
    job = create(integrations=[wandb(), wandb("b", entity="e", name="n", tags=["t"])])
    first, second = official.ask(official.client.fine_tuning.jobs.retrieve(job.id)).integrations
    assert first.to_dict() == wandb(entity=None, name=None, tags=None, run_id=job.id)
    assert second.to_dict() == wandb("b", entity="e", name="n", tags=["t"], run_id=f"{job.id}-2")


@pytest.mark.parametrize(
    ("integrations", "param"),
    [
        ([{"type": "comet", "wandb": {"project": "p"}}], "integrations.0"),
        ([{"type": "wandb"}], "integrations.0.wandb"),
        ([wandb("a/b")], "integrations.0.wandb.project"),
        # trackio would keep it in the file of the project 'ab'.
        ([trackio("a.b")], "integrations.0.trackio.project"),
        ([wandb(tags=["t" * 65])], "integrations.0.wandb.tags.0"),
        ([wandb(str(n)) for n in range(6)], "integrations"),
    ],
    ids=["type", "missing", "project", "file", "tag", "six"],
)
def test_a_wrong_integration_is_named(
    acme: openai.OpenAI, body: dict[str, Any], wandb_on: None, integrations: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.fine_tuning.jobs.create(**body, integrations=integrations)
    assert refusal.value.param == param


@pytest.fixture
def bounded(wandb_on: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers that take runs of one entity, into projects that begin with the organisation's id."""
    monkeypatch.setenv("TROLL_WANDB_ENTITY", "ours")
    monkeypatch.setenv("TROLL_MLFLOW_URI", "https://mlflow.example.com")
    monkeypatch.setenv("TROLL_TRACKIO_DIR", "/data/trackio")
    monkeypatch.setenv("TROLL_TRACKER_PROJECTS", "{organization}-*")
    settings.cache_clear()


@pytest.mark.parametrize(
    ("integration", "told"),
    [
        (wandb("org-of-others-a"), "named 'org-"),
        (mlflow("additions"), "named 'org-"),
        (trackio("additions"), "named 'org-"),
        (wandb("MINE-a", entity="others"), "the entity 'ours' alone"),
        (wandb("MINE-a", entity="ours"), None),
        (wandb("MINE-.*"), None),
        (mlflow("MINE-a", tags={"team": "night"}), None),
        (trackio("MINE-a", name="night"), None),
    ],
    ids=["project", "experiment", "trackio elsewhere", "entity", "ours", "literal", "mlflow", "trackio"],
)
def test_runs_go_only_where_the_operator_lets_them(
    acme: openai.OpenAI, body: dict[str, Any], bounded: None, integration: dict[str, Any], told: str | None
) -> None:
    mine = acme.fine_tuning.jobs.create(**body).organization_id
    named = json.loads(json.dumps(integration).replace("MINE", mine))
    if told is None:
        # The strict client knows no other type than its own.
        job: Any = acme.post("/fine_tuning/jobs", body=body | {"integrations": [named]}, cast_to=object)
        assert job["integrations"][0][named["type"]].items() >= named[named["type"]].items()
        return
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.fine_tuning.jobs.create(**body, integrations=cast(Any, [named]))
    assert refusal.value.param == "integrations"
    assert told in refusal.value.message


@pytest.mark.parametrize(
    ("integration", "setting"),
    [(wandb(), "TROLL_WANDB_MODE"), (mlflow("a"), "TROLL_MLFLOW_URI"), (trackio("a"), "TROLL_TRACKIO_DIR")],
    ids=["wandb", "mlflow", "trackio"],
)
def test_integrations_that_are_turned_off_say_what_turns_them_on(
    acme: openai.OpenAI, body: dict[str, Any], integration: dict[str, Any], setting: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.fine_tuning.jobs.create(**body, integrations=cast(Any, [integration]))
    assert refusal.value.param == "integrations"
    assert setting in refusal.value.message


def test_an_unknown_field_of_extra_body_is_named(create: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        create(extra_body={"priority": "high"})
    assert refusal.value.param == "priority"


def test_jobs_are_listed_once_newest_first_while_others_are_made(official: Official, create: Any) -> None:
    ids = [create().id for _ in range(4)]
    pages = official.ask(official.client.fine_tuning.jobs.list(limit=2))
    seen = [job.id for job in pages.data]
    create()
    pages = official.ask(pages.get_next_page())
    seen += [job.id for job in pages.data]
    assert (seen, pages.has_next_page()) == (ids[::-1], False)


def test_a_filter_by_metadata_takes_all_pairs(official: Official, create: Any) -> None:
    create()
    create(metadata={"team": "red"})
    both = create(metadata={"team": "red", "run": "1"})
    jobs = official.client.fine_tuning.jobs
    found = official.everything(jobs.list(metadata={"team": "red", "run": "1"}))
    assert [job.id for job in found] == [both.id]


def test_jobs_without_metadata_can_be_asked_for(official: Official, create: Any) -> None:
    plain = create()
    create(metadata={"team": "red"})
    found = official.everything(official.client.fine_tuning.jobs.list(extra_query={"metadata": "null"}))
    assert [job.id for job in found] == [plain.id]


def test_events_are_paged_newest_first_while_more_happens(official: Official, create: Any) -> None:
    id = create().id
    tell(id, 5)
    events = official.client.fine_tuning.jobs
    first = official.ask(events.list_events(id, limit=3))
    tell(id, 2)
    rest = official.everything(events.list_events(id, limit=3, after=first.data[-1].id))
    assert [event.to_dict()["seq"] for event in [*first.data, *rest]] == [7, 6, 5, 4, 3, 2, 1]


def tell(job_id: str, count: int) -> None:
    with transaction("troll_worker") as session:
        job = repository.locked(session, job_id)
        assert job is not None
        drafts = [EventDraft(f"Step {n}", type="metrics", data={"step": n}) for n in range(count)]
        service.tell(session, job, drafts)


def save(job_id: str, step: int) -> None:
    with transaction("troll_worker") as session:
        job = repository.get(session, job_id)
        assert job is not None
        checkpoint = Checkpoint(
            id=new_id("ftckpt_"),
            job_id=job_id,
            organization_id=job.organization_id,
            step=step,
            attempt=1,
            path=f"step-{step}",
            model=f"ft:tiny/base:acme::{job_id[-8:]}:ckpt-step-{step}",
            metrics={"valid_reward_mean": 0.5},
        )
        repository.record_checkpoint(session, checkpoint)


def test_checkpoints_are_paged_newest_first_while_more_are_saved(official: Official, create: Any) -> None:
    id = create().id
    for step in (1, 2, 3, 4):
        save(id, step)
    checkpoints = official.client.fine_tuning.jobs.checkpoints
    first = official.ask(checkpoints.list(id, limit=2))
    save(id, 5)
    rest = official.everything(checkpoints.list(id, limit=2, after=first.data[-1].id))
    assert [each.step_number for each in [*first.data, *rest]] == [4, 3, 2, 1]
    assert (first.first_id, first.last_id) == (first.data[0].id, first.data[-1].id)


def test_cancel_needs_no_body(official: Official, create: Any) -> None:
    job = official.ask(official.client.fine_tuning.jobs.cancel(create().id))
    assert job.status == "cancelled"
    assert job.finished_at is not None


def test_pause_and_resume(connect: Any, api_key: Any, body: dict[str, Any]) -> None:
    # 'paused' is a status that the hosted service answers and the client's type lacks: strict clients refuse it.
    jobs = connect(api_key).fine_tuning.jobs
    id = jobs.create(**body).id
    assert jobs.pause(id).status == "paused"
    assert jobs.resume(id).status == "queued"


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
def test_an_impossible_change_is_refused_once(
    connect: Any, api_key: Any, body: dict[str, Any], verb: str, attempts: list[str]
) -> None:
    jobs = connect(api_key).fine_tuning.jobs
    id = jobs.create(**body).id
    jobs.cancel(id)
    attempts.clear()
    with pytest.raises(openai.BadRequestError) as refusal:
        getattr(jobs, verb)(id)
    assert refusal.value.code == "invalid_job_state"
    assert len(attempts) == 1


def test_supervised_jobs_are_refused_by_name(create: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        create(method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}})
    assert refusal.value.param == "method.type"


def test_rows_without_answers_say_that_a_job_without_method_is_supervised(create: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        create(method=openai.NOT_GIVEN)
    assert refusal.value.param == "training_file"
    assert "the method of a job that names none" in refusal.value.message
