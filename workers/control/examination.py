"""Looking at a job before it is accepted: are the rows short enough in tokens, and does the grader work at all?

Tokens are counted by what the training process counts them with. The grader grades the first rows of the training file
with stand-ins for the model's answers; a grader that fails on every one of them, whatever is answered, is refused.
``python -m workers.control.examination`` answers a question on standard input, for ``troll check``.
"""

import json
import logging
import math
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from service.contracts import chat_template
from service.files import dataset
from service.graders import schemas
from service.graders.configured import grader_settings
from service.graders.schemas import GraderError
from service.jobs.examination import Findings, Question, check_files
from workers.bounded import client
from workers.bounded.tasks import Compile
from workers.graders import Grade, Grader, GraderSample, JailError, build, faults

ROWS = 3
STAND_INS = 6
"""Most answers that are tried for a row; judges and scoring services, which cost, are asked once."""
BATCH_SECONDS = 30.0
GRADER_SECONDS = 10.0
"""What counting leaves of the time for the grader."""
OWN = {
    "invalid_variable_error",
    "formula_parse_error",
    "other_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
}
"""Errors that a job's owner can mend: what is in the grader, in the rows, or a server that the grader names."""

log = logging.getLogger(__name__)


def examine(question: Question, seconds: float = math.inf) -> Findings:
    """What is found within ``seconds``; what there was no time for is a note."""
    give_up_at = time.monotonic() + seconds
    answer = Findings(warnings=question.warnings) if question.files_checked else check_files(question)
    if question.json_schema is not None and not answer.problems:
        _try_schema(question, answer)
    if question.model is not None and not answer.problems:
        _count_tokens(question, question.model, answer, give_up_at - (GRADER_SECONDS if _graders(question) else 0.0))
    for where, grader, path in _graders(question):
        if not answer.problems:
            _try_grader(where, grader, path, answer, give_up_at)
    return answer


def _try_schema(question: Question, answer: Findings) -> None:
    (tried,) = client.run([Compile(kind="compile", schema=question.json_schema or {})])
    if "refused" in tried:
        answer.problems[question.at("response_format")] = f"This JSON schema is not supported: {tried['refused']}."


def load_libraries() -> None:
    """Import what counting tokens needs, if it is installed here."""
    try:
        import workers.training.registry  # noqa: F401
    except ImportError as error:
        log.warning("rows are not counted in tokens: %s", error)


def _count_tokens(question: Question, model: Path, answer: Findings, give_up_at: float) -> None:
    try:
        from transformers import AutoConfig

        from workers.bounded.grammars import UnsupportedSchemaError
        from workers.data import jsonl, templating
        from workers.errors import RunError
        from workers.modeling import model_folder
        from workers.rollouts.grammar import Grammars, UnconstrainableError
        from workers.training.method import Reading
        from workers.training.registry import METHODS
    except ImportError as error:
        log.warning("rows are not counted in tokens: %s", error)
        answer.notes.append("Rows were not counted in tokens: the control worker lacks the extra 'worker'")
        return
    try:
        model_folder.check(model)
        tokenizer = model_folder.load_tokenizer(model)
        config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        ends, length = model_folder.stop_ids(model, tokenizer), model_folder.context_length(config)
        rendering = templating.Rendering(told_to_templates(question, tokenizer, answer))
        if question.json_schema is not None:
            Grammars(tokenizer, config.get_text_config().vocab_size, ends).of(question.json_schema)
    except UnconstrainableError as error:
        answer.problems[question.at("response_format")] = str(error)
        return
    except UnsupportedSchemaError as error:
        answer.problems[question.at("response_format")] = f"This JSON schema is not supported: {error}."
        return
    except (RunError, OSError, ValueError, KeyError, ImportError) as error:
        answer.problems["model"] = f"The model cannot be trained: {error}"
        return
    if answer.problems:
        return
    method, reading = METHODS[question.method], Reading(tokenizer, ends, length, rendering)
    shortest: list[int] = []
    all_counted = True
    for param, path in question.files.items():
        problems, usable, highest = jsonl.Problems(), 0, 0
        for part in jsonl.batches(path):
            if time.monotonic() > give_up_at:
                answer.notes.append(
                    f"Not all rows were counted in tokens: those of {param} from line {part[0][0]} on are counted when "
                    "training starts"
                )
                usable += len(part)
                all_counted = False
                break
            # Prompts and examples are forgotten at once: the tokens of a whole file take many times its size.
            try:
                counted = method.count(part, reading, problems)
            except RunError as error:
                answer.problems[error.param or param] = error.message
                return
            usable += counted.rows
            highest = max(highest, counted.highest)
            shortest += [] if counted.shortest_prompt is None else [counted.shortest_prompt]
        if highest >= config.get_text_config().vocab_size:
            wrong = model_folder.without_embedding(tokenizer, highest, config.get_text_config().vocab_size, param)
            answer.problems["model"] = f"The model cannot be trained: its folder {wrong}."
        if problems.count or not usable:
            answer.problems[param] = str(problems.refusal(param))
    if method.samples:
        # A row that was not counted may have a prompt of a single token.
        answer.longest_answer = length - (min(shortest, default=length) if all_counted else 1)


def told_to_templates(question: Question, tokenizer: Any, answer: Findings) -> dict[str, Any]:
    """What templates are told beside the messages; what they never read is a problem, or a warning."""
    from workers.data.templating import template_names

    values, effort = question.chat_template_kwargs, question.reasoning_effort
    if not values and effort is None:
        return {}
    names = template_names(tokenizer)
    wrong = chat_template.unread(values, names)
    if wrong is not None:
        param = question.at("hyperparameters.chat_template_kwargs")
        answer.problems[param] = f"{wrong[0].upper()}{wrong[1:]}."
    if effort is None:
        return values
    if "reasoning_effort" not in names:
        answer.warnings.append("the model's chat template does not read reasoning_effort, which is without effect")
    return {"reasoning_effort": effort} | values


def _graders(question: Question) -> list[tuple[str, schemas.Grader, Path]]:
    """The field, the definition and a file of each grader."""
    found: dict[str, tuple[str, schemas.Grader, Path]] = {}
    for param, path in question.files.items():
        grader = question.grader_of(param)
        if grader is not None:
            own = param in question.graders
            where = f"{param.removesuffix('.file')}.grader" if own else question.at("grader")
            found.setdefault(where, (where, grader, path))
    return list(found.values())


def _try_grader(where: str, definition: schemas.Grader, path: Path, answer: Findings, give_up_at: float) -> None:
    rows = list(islice(dataset.rows(path), ROWS))
    batch_seconds = min(BATCH_SECONDS, max(give_up_at - time.monotonic(), 1.0))
    settings = replace(grader_settings(), batch_seconds=batch_seconds)
    try:
        grader = build(definition, settings)
        for field, fault in faults(definition, settings, where).items():
            answer.problems[where] = f"The grader cannot be loaded ({field}):\n{fault}"
            return
    except (JailError, GraderError, OSError) as error:
        log.warning("a grader cannot be tried here: %s", error)
        answer.notes.append(f"The grader was not tried: {error}")
        return
    asks_others = any(each.asks_others for each in (definition, *definition.parts.values()))
    most = 1 if asks_others else STAND_INS
    failed, untried = try_on(grader, [item for _, item in rows], most, give_up_at)
    if untried:
        answer.notes.append("The grader is slow: it was not tried with all stand-ins for answers")
    by_line = {rows[index][0]: grade for index, grade in failed.items()}
    if len(failed) == len(rows) and all(grade.error in OWN for grade in failed.values()):
        answer.problems[where] = _refusal(by_line)
    elif failed:
        answer.notes.append(f"The grader failed on some of the first rows: {_told(by_line)}")


def _refusal(failed: dict[int, Grade]) -> str:
    """Why a grader is not taken that failed on these lines, whatever was answered."""
    grades = list(failed.values())
    reasons = " ".join(dict.fromkeys(str(grade.detail) for grade in grades))
    if all(grade.away for grade in grades):
        return (
            f"The grader cannot be tried, for what it asks does not answer. {reasons} Create the job again when it "
            "does, or tell the operator of this service."
        )
    if all(grade.error == "model_grader_server_error" for grade in grades):
        return f"The grader's judge cannot be asked. {reasons} Tell the operator of this service."
    return (
        f"The grader fails on the first rows, whatever is answered ({_told(failed)}). It has to give a reward to some "
        "answer."
    )


def _told(failed: dict[int, Grade]) -> str:
    return "; ".join(f"line {line}: {grade.error}, {grade.detail}" for line, grade in failed.items())


def try_on(
    grader: Grader, items: list[dict[str, Any]], most: int, give_up_at: float
) -> tuple[dict[int, Grade], list[int]]:
    """The rows, by index, on which ``grader`` fails whatever is answered, and how it failed last.

    Beside them those that it failed on until there was no time left for another answer.
    """
    answers = [stand_ins(item)[:most] for item in items]
    failed: dict[int, Grade] = {}
    left = list(range(len(items)))
    for attempt in range(most):
        left = [index for index in left if attempt < len(answers[index])]
        if not left:
            break
        if time.monotonic() > give_up_at:
            return {index: grade for index, grade in failed.items() if index not in left}, left
        grades = grader.grade([GraderSample(items[index], answers[index][attempt]) for index in left])
        for index, grade in zip(list(left), grades, strict=True):
            if grade.error is None or grade.sample_at_fault:
                failed.pop(index, None)
                left.remove(index)
            else:
                failed[index] = grade
    return failed, []


def stand_ins(item: dict[str, Any]) -> list[str]:
    """Answers that the model might give to a row: what the row knows beside the conversation, and plain ones."""
    known = {name: value for name, value in item.items() if name not in ("messages", "tools")}
    texts = [str(value) for value in known.values() if isinstance(value, str | int | float)]
    return list(dict.fromkeys([*texts[:2], json.dumps(known), "0", "{}", *texts[2:], "A stand-in for an answer."]))


if __name__ == "__main__":
    asked = TypeAdapter(Question).validate_json(sys.stdin.read())
    sys.stdout.write(examine(asked).model_dump_json())
