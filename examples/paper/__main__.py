"""The published runs of TROLL, as jobs of this service. README.md beside this file tells the whole of it.

python -m examples.paper list
python -m examples.paper prepare gsm8k FOLDER --train train.parquet --valid test.parquet
python -m examples.paper write FOLDER                 # FOLDER/jobs/NAME.yaml, one for each run
python -m examples.paper evaluation MODEL FOLDER      # a job that measures MODEL on the seven sets
troll submit FOLDER/jobs/NAME.yaml --follow
"""

import argparse
import json
import re
from pathlib import Path

from examples.paper import prepare, runs


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names of the runs, their models, and the authors' configurations they are of")
    writer = commands.add_parser("write", help="make every run's job")
    writer.add_argument("folder", type=Path)
    evaluation = commands.add_parser("evaluation", help="make a job that measures a model")
    evaluation.add_argument("model", help="a base model, a result or a checkpoint")
    evaluation.add_argument("folder", type=Path)
    preparer = commands.add_parser("prepare", help="make rows of data sets as they are downloaded")
    preparer.add_argument("data", choices=("gsm8k", "dapo", "eurus", "math"))
    preparer.add_argument("folder", type=Path)
    preparer.add_argument("--train", type=Path, nargs="+", default=[], metavar="FILE")
    preparer.add_argument("--valid", type=Path, nargs="+", default=[], metavar="FILE")
    preparer.add_argument("--sets", nargs="+", default=[], metavar="[SET=]FILE", help="of 'math': its test sets")
    given = parser.parse_args(arguments)
    try:
        told = _run(given)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(told)


def _run(given: argparse.Namespace) -> str:
    table = runs.read_table()
    match given.command:
        case "list":
            of, jobs = runs.sources(table), runs.training_jobs(table)
            return "\n".join(f"{name:44} {job['model']:38} {of[name]}" for name, job in jobs.items())
        case "write":
            written = runs.write(given.folder, runs.training_jobs(table))
            return f"{len(written)} jobs in {given.folder / runs.JOBS}"
        case "evaluation":
            name = "evaluation-" + re.sub(r"[^A-Za-z0-9.-]+", "-", given.model)
            (path,) = runs.write(given.folder, {name: runs.evaluation_job(table, given.model)})
            return str(path)
        case _:
            return json.dumps(_prepare(given), indent=2)


def _prepare(given: argparse.Namespace) -> prepare.Report:
    """Raises ``ValueError`` for files that are missing."""
    if given.data == "math":
        if not given.sets:
            raise ValueError("Name the files of test sets: --sets FILE, or --sets SET=FILE.")
        alone: dict[str, list[Path]] = {}
        for text in given.sets:
            name, _, path = text.rpartition("=")
            alone.setdefault(name, []).append(Path(path))
        return prepare.prepare_math(given.folder, alone.pop("", []), alone)
    if not given.train or not (given.valid or given.data == "dapo"):
        raise ValueError(f"Name the files of {given.data}: --train FILE … --valid FILE …")
    make = {"gsm8k": prepare.prepare_gsm8k, "dapo": prepare.prepare_dapo, "eurus": prepare.prepare_eurus}[given.data]
    return make(given.folder, given.train, given.valid)


if __name__ == "__main__":
    main()
