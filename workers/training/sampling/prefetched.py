"""Answers sampled ahead of the step that learns from them, as they lie in a checkpoint.

    state/ahead.safetensors    token ids and log-probabilities of all answers, one after the other
    state/ahead.json           what else is known of each answer, and how many each prompt has

A resumed run learns from these very answers: by the time it goes on, the weights that sampled them are gone.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.answers import AnswerReader
from workers.data.prompts import Prompt
from workers.graders import Grade
from workers.rollouts.engine import Rollout
from workers.rollouts.top_log_probs import TopLogProbs
from workers.training.data.batch import Sample

TENSORS, DESCRIPTION = "ahead.safetensors", "ahead.json"
_grades: TypeAdapter[Grade] = TypeAdapter(Grade)


def are_in(folder: Path) -> bool:
    return (folder / DESCRIPTION).is_file()


def groups_in(folder: Path) -> int:
    """How many prompts have answers in ``folder``."""
    return len(json.loads((folder / DESCRIPTION).read_bytes())["groups"])


def write(folder: Path, groups: Sequence[Sequence[Sample]], version: int) -> None:
    """Store ``groups`` in ``folder``; ``version`` is that of the engine's weights now."""
    samples = [sample for group in groups for sample in group]
    rollouts = [sample.rollout for sample in samples]
    tensors = {
        "lengths": torch.tensor([len(rollout.token_ids) for rollout in rollouts]),
        "token_ids": torch.tensor([token for rollout in rollouts for token in rollout.token_ids]),
        "log_probs": torch.tensor([value for rollout in rollouts for value in rollout.log_probs], dtype=torch.float64),
    }
    tops = [rollout.top for rollout in rollouts if rollout.top is not None]
    if tops:
        tensors["top_ids"] = torch.from_numpy(np.concatenate([top.ids for top in tops]))
        tensors["top_log_probs"] = torch.from_numpy(np.concatenate([top.log_probs for top in tops]))
    save_file(tensors, folder / TENSORS)
    answers = [
        {
            "finish_reason": sample.rollout.finish_reason,
            "staleness": version - sample.rollout.version,
            "grade": _grades.dump_python(sample.grade, mode="json"),
        }
        for sample in samples
    ]
    description = {"groups": [len(group) for group in groups], "answers": answers}
    (folder / DESCRIPTION).write_text(json.dumps(description) + "\n")


def read(folder: Path, prompts: Sequence[Prompt], reader: AnswerReader, version: int) -> list[list[Sample]]:
    """What was written to ``folder``: answers to ``prompts``, for an engine whose weights now are ``version``."""
    tensors, described = load_file(folder / TENSORS), json.loads((folder / DESCRIPTION).read_bytes())
    rollouts = [
        replace(rollout, finish_reason=answer["finish_reason"], version=version - answer["staleness"])
        for rollout, answer in zip(_rollouts(tensors), described["answers"], strict=True)
    ]
    asked = [prompt for prompt, count in zip(prompts, described["groups"], strict=True) for _ in range(count)]
    answers = reader.read([prompt.token_ids for prompt in asked], [rollout.token_ids for rollout in rollouts])
    grades = [_grades.validate_python(answer["grade"]) for answer in described["answers"]]
    samples = [Sample(*parts) for parts in zip(asked, rollouts, answers, grades, strict=True)]
    return [samples[start:end] for start, end in _spans(described["groups"])]


def _rollouts(tensors: dict[str, Tensor]) -> list[Rollout]:
    token_ids, log_probs = tensors["token_ids"].tolist(), tensors["log_probs"].tolist()
    tops: tuple[Any, Any] | None = None
    if "top_ids" in tensors:
        tops = tensors["top_ids"].numpy(), tensors["top_log_probs"].numpy()
    return [
        Rollout(
            token_ids[start:end],
            log_probs[start:end],
            "length",
            TopLogProbs(tops[0][start:end], tops[1][start:end]) if tops else None,
        )
        for start, end in _spans(tensors["lengths"].tolist())
    ]


def _spans(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Where each of ``counts`` consecutive entries start and end."""
    return list(pairwise(accumulate(counts, initial=0)))
