"""What an answer says, apart from how it was thought out.

Models that reason aloud write it between ``<think>`` and ``</think>``. Graders see what comes after, as they do where
the reasoning never leaves the server; the reasoning is trained on like any other token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    text: str
    reasoning_tokens: int


class AnswerReader:
    """Decodes answers of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._opens, self._closes = vocabulary.get("<think>"), vocabulary.get("</think>")

    def read(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Answer]:
        """One ``Answer`` for each pair of a prompt and an answer, both token ids."""
        thought = [self._reasoning_tokens(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        spoken = [list(answer[count:]) for answer, count in zip(answers, thought, strict=True)]
        texts = self._tokenizer.batch_decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [Answer(text.lstrip() if n else text, n) for text, n in zip(texts, thought, strict=True)]

    def _reasoning_tokens(self, prompt: Sequence[int], answer: Sequence[int]) -> int:
        if self._closes is None:
            return 0
        if self._closes in answer:
            return list(answer).index(self._closes) + 1
        return len(answer) if self._is_open(prompt) or self._opens in answer else 0

    def _is_open(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends within reasoning, as templates that open it for the model do."""
        marks = [token for token in prompt if token in (self._opens, self._closes)]
        return bool(marks) and marks[-1] == self._opens
