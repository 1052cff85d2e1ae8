"""Runs in a trackio store of the operator's, by trackio's own functions for records.

Its ``init`` and ``log`` are not used: they ask Hugging Face who is logged in, look at the hardware, write from a
thread, and only warn of what could not be written. The functions that they call in the end are called here, and raise.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.jobs.integrations import TrackioIntegration
from service.settings import settings
from workers.tracking.run import End, Header, Row, Run, TrackedRun


class TrackioRun(TrackedRun):
    title = "trackio"

    def __init__(self, run: Run, header: Header) -> None:
        from trackio.fragments import FragmentWriter, import_records
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR, get_storage_mode

        asked = TrackioIntegration.model_validate(run.settings).trackio
        # A few names are trackio's own.
        SQLiteStorage.validate_project_name(asked.project)
        # Whoever follows the job is told now if it cannot be, and not when the job has ended.
        TRACKIO_DIR.mkdir(parents=True, exist_ok=True)
        self._labels = {"project": asked.project, "run": run.name, "run_id": run.id}
        self._config: dict[str, Any] | None = header.config
        self._waiting: list[dict[str, Any]] = []
        # Machines that share a folder over a network must not write one SQLite file: they leave records in an inbox,
        # which trackio's dashboard takes in.
        in_files = get_storage_mode() == "jsonl"
        self._write: Callable[[list[dict[str, Any]]], object] = (
            FragmentWriter().write_local if in_files else import_records
        )

    @staticmethod
    def environment(folder: Path) -> dict[str, str]:
        store = settings().trackio_dir
        given = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / ".library")}
        return given if store is None else {"TRACKIO_DIR": str(store), **given}

    def log(self, row: Row) -> None:
        from trackio.fragments import metric_record

        entry = {
            **self._labels,
            "metrics": row.numbers,
            "step": row.step,
            "timestamp": datetime.fromtimestamp(row.time, UTC).isoformat(),
            "config": self._config,
            # A record whose key is there already is left out, so that a run that goes on is not told twice.
            "log_id": f"{self._labels['run_id']}-{row.step}",
        }
        self._waiting.append(metric_record(entry))
        # One record is enough to have it kept with the run.
        self._config = None

    def flush(self) -> None:
        records, self._waiting = self._waiting, []
        if records:
            self._write(records)

    def finish(self, end: End) -> None:
        """Runs have no state in this store."""
        self.flush()
