"""Examples first, rewards afterwards: a supervised job through every real part, and its model as a base."""

from collections.abc import Callable
from typing import Any

from tests import factories
from tests.e2e.conftest import Stack
from tests.e2e.test_main_job import assert_told_once_and_in_order, events, wait


def test_a_supervised_job_learns_and_its_model_is_a_base_for_reinforcement(
    stack: Stack, create: Callable[..., Any]
) -> None:
    client = stack.client
    training, held_out = (
        client.files.create(file=factories.jsonl(factories.answered_rows(count, start)), purpose="fine-tune").id
        for count, start in ((60, 10), (20, 75))
    )
    settings = {"learning_rate": 1e-3, "n_steps": 10, "eval_interval": 10}
    asked: Any = {"type": "supervised", "supervised": {"hyperparameters": settings}}
    id = client.fine_tuning.jobs.create(
        model=stack.model, training_file=training, validation_file=held_out, method=asked, suffix="examples"
    ).id
    job = wait(stack, id)
    assert (job.status, job.error, job.method.type) == ("succeeded", None, "supervised")
    told = events(stack, id)
    assert_told_once_and_in_order(told, steps=10)
    losses = {event.data["step"]: event.data["full_valid_loss"] for event in told if event.type == "metrics"}  # type: ignore[index]
    assert losses[10] < 0.8 * losses[0]
    newest = client.fine_tuning.jobs.checkpoints.list(id).data[0]
    assert newest.metrics.full_valid_loss == newest.metrics.valid_loss == losses[10]
    assert newest.metrics.train_mean_token_accuracy is not None
    table = client.files.content(job.result_files[0]).text.splitlines()
    assert table[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(table) == 1 + 11
    reinforced = wait(stack, create(model=job.fine_tuned_model, n_steps=1, eval_interval=1).id)
    assert (reinforced.status, reinforced.model) == ("succeeded", job.fine_tuned_model)
    assert reinforced.fine_tuned_model.split(":")[1] == stack.model
