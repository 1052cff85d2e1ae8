"""Rows of the generators of reasoning-gym, and a job that grades them.

    pip install troll-rft[procedural]
    python -m examples.tasks.procedural list
    python -m examples.tasks.procedural spell_backward FOLDER --model NAME

A generator whose answer is the only right one is graded by ``string_check``. The others (an equation has many
solutions) judge by code of their own, which a ``python`` grader calls: graders' code sees what the worker's environment
has installed, so the extra has to be there as well. Answers are graded whole: tell the model in a system message to say
nothing else, or have it answer by a schema.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from examples.tasks.__main__ import COUNTS, job
from examples.tasks.task import PARTS, exact

SOURCE = """\
import reasoning_gym

def grade(sample, item):
    judge = reasoning_gym.get_score_answer_fn(item["entry"]["metadata"]["source_dataset"])
    return float(judge(answer=sample["output_text"], entry=item["entry"]))
"""
MAX_COMPLETION_TOKENS = 256


def generators() -> list[str]:
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def rows(generator: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Different questions, each with its ``answer`` and the whole ``entry`` that the generator judges by.

    Raises ``ValueError`` when there are fewer, or when an entry that has been JSON is no longer judged rightly.
    """
    import reasoning_gym

    made: dict[str, dict[str, Any]] = {}
    # Small generators repeat themselves.
    data = reasoning_gym.create_dataset(generator, size=4 * count, seed=seed)
    for entry in data:
        if len(made) == count:
            break
        kept = _as_json(generator, entry)
        if data.score_answer(kept["answer"], kept) != 1:
            raise ValueError(f"{generator} does not judge its own answer right once it has been JSON.")
        message = {"role": "user", "content": kept["question"]}
        made.setdefault(kept["question"], {"messages": [message], "answer": kept["answer"], "entry": kept})
    if len(made) < count:
        raise ValueError(f"{generator} has only {len(made)} different questions. Ask for fewer rows.")
    return list(made.values())


def _as_json(generator: str, entry: dict[str, Any]) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(json.dumps(entry, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Entries of {generator} cannot be written as JSON: {error}") from error
    return kept


def grader(generator: str) -> dict[str, Any]:
    """Exact where the generator says that its answer is the only one, its own judgement elsewhere."""
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS

    if DATASETS[generator][0].score_answer is ProceduralDataset.score_answer:
        return exact()
    return {"type": "python", "name": generator, "source": SOURCE}


def write(generator: str, folder: Path, model: str, seed: int) -> None:
    """Rows of all parts and the job's file. No question is in two parts."""
    every = rows(generator, sum(COUNTS.values()), seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        mine, every = every[: COUNTS[part]], every[COUNTS[part] :]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
    (folder / "job.yaml").write_text(job(model, grader(generator), MAX_COMPLETION_TOKENS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", help="its name, or 'list'")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", default="MODEL", help="for the job's file")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.generator == "list":
        print("\n".join(generators()))
    elif given.generator not in generators():
        parser.error(f"{given.generator!r} is no generator of reasoning-gym; 'list' names them.")
    elif given.folder is None:
        parser.error("Name a folder for the rows.")
    else:
        try:
            write(given.generator, given.folder, given.model, given.seed)
        except ValueError as error:
            parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
