"""Answers sampled ahead of the step that learns from them, as they lie in a checkpoint.

    state/ahead.safetensors    token ids and log-probabilities of the next step's answers, one after the other
    state/ahead.json           what else is known of each answer, and how many each prompt has
    state/ahead-2/ahead.*      the same of the step after it, whose answers may be unfinished; and so on
    state/ahead-1/ahead.*      the next step's, in place of the first two, where some were not graded yet

A resumed run learns from these very answers: by the time it goes on, the weights that sampled them are gone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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

TENSORS, DESCRIPTION, AHEAD = "ahead.safetensors", "ahead.json", "ahead-"
_grades: TypeAdapter[Grade] = TypeAdapter(Grade)


class Answered(Protocol):
    @property
    def rollout(self) -> Rollout: ...
    @property
    def grade(self) -> Grade | None: ...
    @property
    def least(self) -> float: ...


class Kept(NamedTuple):
    """An answer as it is kept."""

    rollout: Rollout
    """Perhaps unfinished, or not begun."""
    grade: Grade | None = None
    """None where it has not been graded."""
    least: float = 0.0
    """What it earned where it was at fault, if that was settled; earlier releases did not keep it."""


def are_in(folder: Path) -> bool:
    return (folder / DESCRIPTION).is_file()


def groups_in(folder: Path) -> int:
    """How many prompts have answers in ``folder``."""
    return len(json.loads((folder / DESCRIPTION).read_bytes())["groups"])


def write_ahead(folder: Path, step: int, ahead: Mapping[int, Sequence[Sequence[Answered]]], version: int) -> None:
    """Store the answers of steps after ``step``, as ``write`` does."""
    for later, groups in ahead.items():
        graded = all(each.grade is not None for group in groups for each in group)
        own = folder if later == step + 1 and graded else folder / f"{AHEAD}{later - step}"
        own.mkdir(exist_ok=True)
        write(own, groups, version)


def read_ahead(folder: Path, step: int, version: int) -> dict[int, list[list[Kept]]]:
    """What was stored of each of the steps after ``step``."""
    found = {int(each.name.removeprefix(AHEAD)): each for each in folder.glob(f"{AHEAD}*") if each.is_dir()}
    if are_in(folder):
        found[1] = folder
    return {step + number: read_kept(found[number], version) for number in sorted(found)}


def write(folder: Path, groups: Sequence[Sequence[Answered]], version: int) -> None:
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
            "continued": sample.rollout.continued,
            "grade": None if sample.grade is None else _grades.dump_python(sample.grade, mode="json"),
            "least": sample.least,
        }
        for sample in samples
    ]
    description = {"groups": [len(group) for group in groups], "answers": answers}
    (folder / DESCRIPTION).write_text(json.dumps(description) + "\n")


def read(folder: Path, prompts: Sequence[Prompt], reader: AnswerReader, version: int) -> list[list[Sample]]:
    """The graded answers to ``prompts`` in ``folder``, for an engine whose weights now are ``version``."""
    return samples_of(prompts, read_kept(folder, version), reader)


def read_kept(folder: Path, version: int) -> list[list[Kept]]:
    """What was written to ``folder``, for an engine whose weights now are ``version``."""
    described = json.loads((folder / DESCRIPTION).read_bytes())
    kept = [
        Kept(
            replace(
                rollout,
                finish_reason=answer["finish_reason"],
                version=version - answer["staleness"],
                continued=answer.get("continued", 0),
            ),
            None if answer["grade"] is None else _grades.validate_python(answer["grade"]),
            answer.get("least", 0.0),
        )
        for rollout, answer in zip(_rollouts(load_file(folder / TENSORS)), described["answers"], strict=True)
    ]
    return [kept[start:end] for start, end in _spans(described["groups"])]


def samples_of(
    prompts: Sequence[Prompt], groups: Sequence[Sequence[Answered]], reader: AnswerReader
) -> list[list[Sample]]:
    """The graded answers to each of ``prompts``. Raises ``ValueError`` where one has no grade."""
    asked = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    kept = [each for group in groups for each in group]
    answers = reader.read([prompt.token_ids for prompt in asked], [each.rollout.token_ids for each in kept])
    samples = [
        Sample(prompt, each.rollout, answer, _graded(each), each.least)
        for prompt, each, answer in zip(asked, kept, answers, strict=True)
    ]
    return [samples[start:end] for start, end in _spans([len(group) for group in groups])]


def _graded(answered: Answered) -> Grade:
    if answered.grade is None:
        raise ValueError("groups: an answer was not graded yet")
    return answered.grade


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
