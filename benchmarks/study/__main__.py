"""Objectives compared on tasks that need no download, every run a job of the service.

    make study                                              # some minutes
    make study BUDGET=hours SERVICES=2                      # some hours on 2 cores
    python -m benchmarks.study --budget hours --services 4 --minutes 300
    python -m benchmarks.study --budget hours --report      # only write the report of what has been done

What is compared is in ``grid.yaml``. A study that was stopped goes on where it was when it is started again; a run is
repeated only when its settings, its task or its base model change, or when it is removed from ``OUT/runs`` and from
``RESULTS``, which a clone brings along. Each of ``--services`` works on one run at a time, on one core.
"""

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.study import report, runs
from benchmarks.study.grid import GRID, Grid
from service.embedded.processes import StartError

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, default=GRID)
    parser.add_argument("--budget", default="minutes", help="which part of the grid (%(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after these no run begins")
    parser.add_argument("--services", type=int, default=1, help="how many run at once, each on a core (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / ".data" / "study", help="where runs are kept")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "study.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "study.json")
    parser.add_argument("--report", action="store_true", help="begin no run")
    given = parser.parse_args()
    runs.stop_in_order()
    try:
        grid = Grid.read(given.grid, given.budget)
    except ValueError as error:
        parser.error(str(error))
    until = time.time() + 60 * given.minutes
    runs.Study(given.out).adopt(given.results)
    if not given.report:
        try:
            do(grid, given.out, given.services, until)
        except StartError as error:
            parser.exit(1, f"{error}\n")
    tell(grid, given.out, given.results, given.document)


def do(grid: Grid, out: Path, services: int, until: float) -> None:
    """All runs, by as many services. Raises ``SystemExit`` when one of them broke."""
    plans = list(grid.plans())
    runs.Study(out).prepare(plans)
    if services == 1:
        runs.work(out, plans, 0, until)
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=runs.work_beside, args=(out, plans, number, until)) for number in range(services)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit("A service broke; what it said is above. Start the study again to go on.")


def tell(grid: Grid, out: Path, results: Path, document: Path) -> None:
    """Write what is known of the grid."""
    study, plans = runs.Study(out), list(grid.plans())
    # A run is called what the grid calls it now: names are no part of the key.
    known = [json.loads(study.result(plan).read_text()) | asdict(plan) for plan in plans if study.result(plan).exists()]
    if not known:
        sys.exit("No run has ended yet: there is nothing to report.")
    bases = {plan.task: json.loads(study.base(plan).read_text()) for plan in plans if study.base(plan).exists()}
    results.parent.mkdir(parents=True, exist_ok=True)
    # Of another grid or budget perhaps, which this one leaves as they are.
    others = json.loads(results.read_text()) if results.exists() else {"bases": {}, "runs": []}
    bases = {**others["bases"], **bases}
    done = {run["key"]: run for run in [*others["runs"], *known]}
    lines = ",\n".join(json.dumps(run) for run in done.values())
    results.write_text(f'{{"bases": {json.dumps(bases)},\n"runs": [\n{lines}\n]}}\n')
    report.write(grid, known, bases, document, document.parent / "figures")
    print(f"{len(known)} of {len(plans)} runs are in {document}")


if __name__ == "__main__":
    main()
