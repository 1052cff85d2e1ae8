"""Prompts out of dataset rows, and the order they are trained on in."""

import json
from collections import Counter
from datetime import datetime, timedelta, timezone
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.hyperparameters.supervised import SupervisedHyperparameters
from tests.workers.training import tiny
from workers.data import jsonl, templating
from workers.data.prompts import load_prompts, read_prompts
from workers.demo import make_tokenizer
from workers.errors import RunError
from workers.training.data import order


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def ask(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


@pytest.fixture
def plain_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def test_a_prompt_is_the_chat_template_with_the_answer_about_to_begin(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    (prompt,) = load_prompts(write(tmp_path / "rows", ask("12+34=")), tokenizer, tiny.CONTEXT, "training_file")
    assert tokenizer.decode(prompt.token_ids) == "<|user|>12+34=<|assistant|>"


def test_without_a_chat_template_the_contents_are_joined(
    tmp_path: Path, plain_tokenizer: PreTrainedTokenizerBase
) -> None:
    row = {"messages": [{"role": "developer", "content": "1 "}, {"role": "user", "content": [{"text": "2="}]}]}
    (prompt,) = load_prompts(write(tmp_path / "rows", row), plain_tokenizer, tiny.CONTEXT, "training_file")
    assert prompt.token_ids == plain_tokenizer("1 \n2=")["input_ids"]


def test_the_whole_row_stays_with_the_prompt(tmp_path: Path) -> None:
    row = ask("1+1=") | {"answer": {"value": 2}}
    (prompt,) = load_prompts(write(tmp_path / "rows", row), make_tokenizer(), tiny.CONTEXT, "training_file")
    assert prompt.item == row


def test_developer_messages_are_system_messages_to_a_template_that_knows_no_others(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0:3] }}{% endfor %}"
    asked = templating.Asked(1, templating.messages_of(ask("x", role="developer"), tokenizer), None)
    assert templating.render([asked], tokenizer) == ["sys"]


def test_a_template_that_never_ends_ends_the_reading_with_the_line(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for a in messages[0].content %}{% for b in range(100000) %}{% for c in range(100000) %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    )
    rows = write(tmp_path / "rows", ask(""), ask("1"))
    with pytest.raises(RunError, match=r"line 2 .* chat template takes more than") as caught:
        load_prompts(rows, tokenizer, tiny.CONTEXT, "training_file")
    assert (caught.value.code, caught.value.param) == ("invalid_model", "model")


def test_all_unusable_rows_are_named_at_once(tmp_path: Path) -> None:
    rows = write(
        tmp_path / "rows",
        ask("1+1="),
        "{broken",
        {"answer": "2"},
        ask([{"type": "image_url"}]),
        ask("2", role="system"),
        ask("1" * tiny.CONTEXT),
    )
    with pytest.raises(RunError) as caught:
        load_prompts(rows, make_tokenizer(), tiny.CONTEXT, "validation_file")
    assert caught.value.param == "validation_file"
    assert [f"line {n}" in caught.value.message for n in range(1, 7)] == [False, True, True, True, True, True]
    assert "the demo model knows user and assistant messages only" in caught.value.message
    assert f"the model's context is {tiny.CONTEXT}" in caught.value.message


def test_long_files_are_encoded_a_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [ask(f"{number}+1=") for number in range(10, 17)]
    path = write(tmp_path / "rows", *rows, "", "{broken", ask("1" * tiny.CONTEXT))
    whole = jsonl.Problems()
    (batch,) = jsonl.batches(path)
    prompts = read_prompts(batch, make_tokenizer(), tiny.CONTEXT, whole)
    assert [prompt.item for prompt in prompts] == rows
    monkeypatch.setattr(jsonl, "BATCH_ROWS", 3)
    assert [[number for number, _ in part] for part in jsonl.batches(path)] == [[1, 2, 3], [4, 5, 6], [7, 9, 10]]
    with pytest.raises(RunError) as caught:
        load_prompts(path, make_tokenizer(), tiny.CONTEXT, "training_file")
    assert caught.value.message == whole.refusal("training_file").message
    packed = load_prompts(write(path, "", rows[0], "  ", *rows[1:]), make_tokenizer(), tiny.CONTEXT, "training_file")
    assert ([*packed], packed[-2:], packed[-1]) == (prompts, prompts[-2:], prompts[-1])
    monkeypatch.setattr(jsonl, "BATCH_BYTES", len(json.dumps(rows[0])) + 2)
    assert [len(part) for part in jsonl.batches(path)] == [2, 2, 2, 1]


def test_only_problems_that_are_named_are_put_into_words() -> None:
    worded: list[int] = []

    class Reason:
        def __str__(self) -> str:
            worded.append(1)
            return "why"

    problems = jsonl.Problems()
    for line in range(1, jsonl.MAX_ROWS_NAMED + 4):
        problems.add(line, Reason())
    message = problems.refusal("training_file").message
    assert len(worded) == jsonl.MAX_ROWS_NAMED
    assert message.startswith(f"{jsonl.MAX_ROWS_NAMED + 3} rows cannot be trained on: line 1: why; line 2: why")
    assert message.endswith(f"line {jsonl.MAX_ROWS_NAMED}: why (and 3 more).")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no rows"):
        load_prompts(write(tmp_path / "rows", ""), make_tokenizer(), tiny.CONTEXT, "training_file")


def test_every_epoch_has_every_row_once_in_another_order() -> None:
    rows, batch_size = 12, 4
    steps = [order.rows_of_step(step, 1, rows, batch_size) for step in range(1, 7)]
    first, second = list(chain(*steps[:3])), list(chain(*steps[3:]))
    assert sorted(first) == sorted(second) == list(range(rows))
    assert first != second != list(range(rows))


def test_an_epoch_may_end_within_a_step() -> None:
    drawn = list(chain(*(order.rows_of_step(step, 1, 5, 3) for step in range(1, 6))))
    assert [sorted(drawn[start : start + 5]) for start in (0, 5, 10)] == [list(range(5))] * 3


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs"), [(33, 32, 1), (33, 16, 3), (32, 32, 2), (5, 3, 2), (1, 1, 4)]
)
def test_as_many_epochs_are_trained_as_were_asked_for(rows: int, batch_size: int, epochs: int) -> None:
    for method, resolved in (
        ("reinforcement", resolve(Hyperparameters(batch_size=batch_size, n_epochs=epochs), training_rows=rows)),
        (
            "supervised",
            resolve(SupervisedHyperparameters(batch_size=batch_size, n_epochs=epochs), training_rows=rows),
        ),
    ):
        total = order.rows_in_all(rows, batch_size, resolved.n_steps, resolved.n_epochs)
        steps = [order.rows_of_step(step, 1, rows, batch_size, total) for step in range(1, resolved.n_steps + 1)]
        assert Counter(chain(*steps)) == Counter(list(range(rows)) * epochs), method
        assert all(len(step) == batch_size for step in steps[:-1])


def test_steps_that_were_asked_for_are_whole_and_show_the_epochs_they_begin() -> None:
    resolved = resolve(Hyperparameters(batch_size=32, n_epochs=3, n_steps=2), training_rows=33)
    assert (resolved.n_steps, resolved.n_epochs) == (2, 2)
    assert order.rows_in_all(33, 32, resolved.n_steps, resolved.n_epochs) == 64


def test_another_seed_gives_another_order() -> None:
    assert order.rows_of_step(1, 1, 50, 50) != order.rows_of_step(1, 2, 50, 50)


TOLD = "{% for m in messages %}{{ m.content }}{% endfor %}{{ strftime_now('%Y') }}{{ a }}{{ reasoning_effort }}"


def teller(template: Any = TOLD) -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_job_tells_the_template_its_own_time_and_values(tmp_path: Path) -> None:
    when = datetime(2024, 12, 31, 23, tzinfo=timezone(timedelta(hours=-3)))
    asked = Hyperparameters(chat_template_kwargs={"a": 7}, reasoning_effort="low")
    rendering = templating.rendering_of(asked, teller(), when)
    (text,) = templating.render([templating.Asked(1, ask("1=")["messages"], None)], teller(), rendering)
    assert text == "1=20257low"
    rows = write(tmp_path / "rows", ask("1="))
    (prompt,) = load_prompts(rows, teller("{{ strftime_now('%Y') }}{{ a }}"), 48, "training_file", rendering)
    assert prompt.token_ids == make_tokenizer()("20257")["input_ids"]


def test_what_no_template_of_the_tokenizer_reads_is_refused() -> None:
    tokenizer = teller({"default": "{{ a }}", "tool_use": "{{ b }}{{ eos_token }}"})
    assert templating.rendering_of(Hyperparameters(chat_template_kwargs={"b": 1}), tokenizer, None).values == {"b": 1}
    with pytest.raises(RunError, match=r"does not read 'c'\. It reads: a, b\.") as refusal:
        templating.rendering_of(SupervisedHyperparameters(chat_template_kwargs={"c": 1}), tokenizer, None)
    assert refusal.value.param == "hyperparameters.chat_template_kwargs"
    with pytest.raises(RunError, match="It reads: none"):
        templating.rendering_of(Hyperparameters(chat_template_kwargs={"c": 1}), teller(None), None)


def test_an_effort_that_the_template_does_not_read_is_left_out() -> None:
    asked = Hyperparameters(reasoning_effort="high")
    assert templating.rendering_of(asked, teller("{{ messages }}"), None).values == {}
    assert templating.rendering_of(asked, teller(), None).values == {"reasoning_effort": "high"}
