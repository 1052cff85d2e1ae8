"""What the model's chat template makes of messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from service.contracts import chat_template
from service.jobs.hyperparameters.option import ToldToTemplates
from workers.bounded import client, messages
from workers.bounded.tasks import MAX_CHARACTERS, Names, Render
from workers.data.jsonl import UnusableRowError
from workers.errors import RunError


@dataclass(frozen=True)
class Rendering:
    """What a job tells the chat template, whatever the row."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """By the names under which the template reads them."""
    now: datetime | None = None
    """When it is; None is when the template asks."""


PLAIN = Rendering()


@dataclass(frozen=True)
class Asked:
    """Messages to be written as one text."""

    line: int
    """Of the file that they are from."""
    messages: list[dict[str, Any]]
    """As ``messages_of`` gives them."""
    tools: Any
    answer_next: bool = True
    """Whether the text goes on to where an answer of the assistant begins."""


def messages_of(item: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """A row's messages as chat templates of open models take them. Raises ``UnusableRowError``."""
    try:
        return messages.for_template(item["messages"], template(tokenizer, item.get("tools")))
    except messages.UnusableMessageError as error:
        raise UnusableRowError(str(error)) from error


def render(
    asked: Sequence[Asked], tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN
) -> list[str | UnusableRowError]:
    """The texts that the model reads, or why the chat template has none. Without one, the contents, one a line.

    A template works in bounds, see ``workers.bounded``. Raises ``RunError`` where it exceeds them.
    """
    if tokenizer.chat_template is None:
        return [messages.joined(each.messages) for each in asked]
    known = special_tokens(tokenizer)
    tasks = [
        Render(
            kind="render",
            template=template(tokenizer, each.tools) or "",
            special_tokens=known,
            messages=each.messages,
            tools=each.tools,
            answer_next=each.answer_next,
            most=MAX_CHARACTERS,
            values=dict(rendering.values),
            now=None if rendering.now is None else rendering.now.astimezone(UTC).isoformat(),
        )
        for each in asked
    ]
    texts: list[str | UnusableRowError] = []
    for each, answer in zip(asked, client.run(tasks), strict=True):
        if answer.get("exceeded"):
            message = f"On line {each.line} of the file, {answer['refused']}. Mend the template, or shorten the row."
            raise RunError("invalid_model", message, param="model")
        texts.append(UnusableRowError(answer["refused"]) if "refused" in answer else answer["text"])
    return texts


def rendering_of(
    hyperparameters: ToldToTemplates,
    tokenizer: PreTrainedTokenizerBase,
    now: datetime | None,
) -> Rendering:
    """What the job tells the template. Raises ``RunError`` where it is told what it never reads.

    ``reasoning_effort`` outside of ``chat_template_kwargs`` is left out there.
    """
    values = hyperparameters.template_values
    if not values:
        return Rendering(now=now)
    names = template_names(tokenizer)
    wrong = chat_template.unread(hyperparameters.chat_template_kwargs, names)
    if wrong is not None:
        message = f"{wrong[0].upper()}{wrong[1:]}."
        raise RunError("invalid_chat_template_kwargs", message, param="hyperparameters.chat_template_kwargs")
    return Rendering({name: value for name, value in values.items() if name in names}, now)


def template_names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The names that the tokenizer's templates read. Raises ``RunError`` where one cannot be read."""
    templates = {template(tokenizer, None), template(tokenizer, [{}])} - {None}
    found: set[str] = set()
    for answer in client.run([Names(kind="names", template=str(each)) for each in templates]):
        if "refused" in answer:
            raise RunError("invalid_model", f"The model cannot be used: {answer['refused']}.", param="model")
        found |= set(answer["names"])
    return found - special_tokens(tokenizer).keys()


def template(tokenizer: PreTrainedTokenizerBase, tools: Any) -> str | None:
    """The chat template that is used for messages with these tools; some tokenizers have one of their own for them."""
    if tokenizer.chat_template is None:
        return None
    try:
        return str(tokenizer.get_chat_template(tools=tools))
    except ValueError as error:
        raise RunError("invalid_model", f"The model's chat template cannot be used: {error}", param="model") from error


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Those that chat templates may name, by name."""
    found = tokenizer.special_tokens_map.items()
    return {name: [str(each) for each in value] if isinstance(value, list) else str(value) for name, value in found}
