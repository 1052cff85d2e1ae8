"""Rollouts that were recorded before: ``recorded.jsonl`` in the model's folder, as likely as the model finds them now.

A line is ``{"prompt": [ids], "answers": [[ids], …]}``. Nothing is drawn, so that a step of training can be repeated and
looked at.
"""

import json
from collections.abc import Generator, Sequence
from typing import Self

from workers.errors import RunError
from workers.modeling.policy import Policy
from workers.rollouts.engine import Begun, EngineRequest, Rollout, RolloutEngine, Sampling
from workers.rollouts.gathered import gathered
from workers.rollouts.grammar import Grammar

FILE = "recorded.jsonl"


class ReplayEngine(RolloutEngine):
    """A ``RolloutEngine`` that samples nothing. It scores with the trained model itself, at temperature 1."""

    def __init__(self, policy: Policy, recorded: dict[tuple[int, ...], list[list[int]]]) -> None:
        self._policy, self._recorded = policy, recorded
        self.version = 0

    @classmethod
    def of_job(cls, request: EngineRequest) -> Self:
        path = request.policy.folder / FILE
        if not path.is_file():
            raise RunError("invalid_model", f"The model's folder has no {FILE} with answers.")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return cls(request.policy, {tuple(line["prompt"]): line["answers"] for line in lines})

    def push(self, policy: Policy, probes: Sequence[Sequence[int]]) -> None:
        """Its weights are the policy's."""
        self.version += 1

    def stream(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling
    ) -> Generator[tuple[int, list[Rollout]]]:
        for index, prompt in enumerate(prompts):
            answers = self._answers(prompt)
            chosen = [answers[number % len(answers)][: sampling.max_tokens] for number in range(samples)]
            yield index, [self._rollout(prompt, answer) for answer in chosen]

    def extend(
        self, begun: Sequence[Begun], temperature: float, grammar: Grammar | None = None
    ) -> Generator[tuple[int, Rollout]]:
        for index, each in enumerate(begun):
            start = list(each.token_ids)
            fitting = [answer for answer in self._answers(each.prompt_ids) if answer[: len(start)] == start]
            if not fitting:
                raise RunError("invalid_model", f"{FILE} has no answer that goes on from the one begun.")
            answer = fitting[each.seed % len(fitting)]
            yield index, self._rollout(each.context, answer[len(start) :][: each.max_tokens])

    def _answers(self, prompt: Sequence[int]) -> list[list[int]]:
        answers = self._recorded.get(tuple(prompt))
        if not answers:
            raise RunError("invalid_model", f"{FILE} has no answer to a prompt.")
        return answers

    def _rollout(self, context: Sequence[int], answer: list[int]) -> Rollout:
        with gathered(self._policy.model):
            (scores,) = self._policy.score([[*context, *answer]])
        ended = bool(answer) and answer[-1] in self._policy.stop_ids
        return Rollout(answer, scores[len(context) - 1 :], "stop" if ended else "length", version=self.version)
