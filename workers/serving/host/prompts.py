"""From what was asked to token ids, and how the answer is to be written."""

from transformers import PreTrainedTokenizerBase

from service.inference.wire import Question
from workers.serving.host.engine import Engine, RequestRefusedError
from workers.serving.host.writer import OutputFormat


def prompts(question: Question, text: str | None, engine: Engine) -> list[list[int]]:
    """The prompts' token ids; ``text`` is what the model is shown of a chat.

    Raises ``RequestRefusedError`` for them, and for biases on tokens that are none.
    """
    if max(question.sampling.logit_bias, default=0) >= engine.vocabulary_size:
        raise RequestRefusedError(
            f"Token ids must be below {engine.vocabulary_size}, the size of the vocabulary.", "logit_bias"
        )
    if question.chat is not None:
        ids = encode(text or "", engine.tokenizer, special=engine.tokenizer.chat_template is None)
        return [_checked(ids, engine, "messages", given=False)]
    return [
        _checked(prompt, engine, "prompt", given=True)
        if isinstance(prompt, list)
        else _checked(encode(prompt, engine.tokenizer, special=True), engine, "prompt", given=False)
        for prompt in question.prompts
    ]


def encode(text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool) -> list[int]:
    """The text's token ids, with those that the tokenizer puts around texts where ``special``."""
    if tokenizer.is_fast and type(tokenizer).__call__ is PreTrainedTokenizerBase.__call__:
        # The same ids as a call of the tokenizer gives, without keeping the other threads from going on.
        (encoding,) = tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return list(encoding.ids)
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def output_format(question: Question, prompt: list[int]) -> OutputFormat:
    sampling = question.sampling
    scored = sampling.logprobs is not None
    if question.chat is None:
        return OutputFormat(sampling.stop, scored, prompt, is_chat=False)
    return OutputFormat(
        sampling.stop,
        scored,
        prompt,
        tools=bool(question.chat.tools),
        parallel_tool_calls=question.chat.parallel_tool_calls,
    )


def max_tokens(question: Question, prompt: list[int], engine: Engine) -> int:
    """Most tokens of an answer to ``prompt``, which leaves room for at least one."""
    left = engine.context_length - len(prompt)
    return min(left, question.sampling.max_tokens or left)


def _checked(prompt: list[int], engine: Engine, param: str, *, given: bool) -> list[int]:
    """``prompt``, whose ids were ``given``, or are the tokenizer's."""
    if not prompt:
        raise RequestRefusedError("The prompt has no tokens.", param)
    if max(prompt) >= engine.vocabulary_size and given:
        raise RequestRefusedError(
            f"Token ids must be below {engine.vocabulary_size}, the size of the vocabulary.", param
        )
    if max(prompt) >= engine.vocabulary_size:
        name = engine.tokenizer.convert_ids_to_tokens(max(prompt))
        message = (
            f"The model's folder cannot be used with this: its tokenizer has a token {name!r} beyond the "
            f"{engine.vocabulary_size} of the model's vocabulary, and the prompt contains it."
        )
        raise RequestRefusedError(message, "model", "invalid_model")
    if len(prompt) >= engine.context_length:
        message = (
            f"This model's context is {engine.context_length} tokens; the prompt has {len(prompt)}, and an answer "
            "needs room too."
        )
        raise RequestRefusedError(message, param, "context_length_exceeded")
    return prompt
