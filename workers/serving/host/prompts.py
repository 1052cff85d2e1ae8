"""From what was asked to token ids, and how the answer is to be written."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from service.inference.wire import Chat, Question
from workers.serving.host.engine import Engine, Refused
from workers.serving.host.tools import can_call
from workers.serving.host.vocabulary import Vocabulary
from workers.serving.host.writer import Manner
from workers.training.data import UnusableRow, render


def prompts(question: Question, engine: Engine) -> list[list[int]]:
    """The prompts' token ids. Raises ``Refused`` for them, and for biases on tokens that are none."""
    if max(question.sampling.logit_bias, default=0) >= engine.vocabulary_size:
        raise Refused(f"Token ids must be below {engine.vocabulary_size}, the size of the vocabulary.", "logit_bias")
    if question.chat is not None:
        return [_checked(_chat(question.chat, engine.tokenizer), engine, "messages")]
    return [_checked(_plain(prompt, engine.tokenizer), engine, "prompt") for prompt in question.prompts]


def manner(question: Question, prompt: list[int], vocabulary: Vocabulary) -> Manner:
    sampling = question.sampling
    scored = sampling.logprobs is not None
    if question.chat is None:
        return Manner(sampling.stop, scored, before=prompt)
    return Manner(
        sampling.stop,
        scored,
        reasoning="none" if vocabulary.think_closes is None else "open" if is_open(prompt, vocabulary) else "possible",
        tools=bool(question.chat.tools),
        parallel_tool_calls=question.chat.parallel_tool_calls,
    )


def is_open(prompt: list[int], vocabulary: Vocabulary) -> bool:
    """Whether the prompt ends within reasoning, as templates that open it for the model do."""
    marks = [token for token in prompt if token in (vocabulary.think_opens, vocabulary.think_closes)]
    return bool(marks) and marks[-1] == vocabulary.think_opens


def max_tokens(question: Question, prompt: list[int], engine: Engine) -> int:
    """Most tokens of an answer to ``prompt``, which leaves room for at least one."""
    left = engine.context_length - len(prompt)
    return min(left, question.sampling.max_tokens or left)


def _chat(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if chat.tools and not can_call(tokenizer):
        raise Refused("This model's chat template knows no tool calls that can be told from text.", "tools")
    item: dict[str, Any] = {"messages": [_with_arguments(message) for message in chat.messages]}
    if chat.tools:
        item["tools"] = chat.tools
    try:
        text = render(item, tokenizer)
    except UnusableRow as error:
        raise Refused(str(error).capitalize() + ".", "messages") from error
    return list(tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"])


def _with_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Templates want a call's arguments as an object, OpenAI's API has them as a text."""
    calls = []
    for call in message.get("tool_calls", []):
        try:
            arguments = json.loads(call["function"]["arguments"] or "{}")
        except ValueError as error:
            raise Refused("A tool call's arguments are not JSON.", "messages") from error
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {"content": None} | message | ({"tool_calls": calls} if calls else {})


def _plain(prompt: str | list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return prompt if isinstance(prompt, list) else list(tokenizer(prompt)["input_ids"])


def _checked(prompt: list[int], engine: Engine, param: str) -> list[int]:
    if not prompt:
        raise Refused("The prompt has no tokens.", param)
    if max(prompt) >= engine.vocabulary_size:
        raise Refused(f"Token ids must be below {engine.vocabulary_size}, the size of the vocabulary.", param)
    if len(prompt) >= engine.context_length:
        message = (
            f"This model's context is {engine.context_length} tokens; the prompt has {len(prompt)}, and an answer "
            "needs room too."
        )
        raise Refused(message, param, "context_length_exceeded")
    return prompt
