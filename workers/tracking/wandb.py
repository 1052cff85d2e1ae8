"""Runs of Weights & Biases, by its own library."""

from pathlib import Path
from typing import Any

from service.jobs import integrations
from service.jobs.integrations import WandbIntegration
from service.settings import settings
from workers.tracking.run import End, Header, Row, Run, TrackedRun

INIT_SECONDS = 30.0


class WandbRun(TrackedRun):
    title = "Weights & Biases"

    def __init__(self, run: Run, header: Header) -> None:
        import wandb

        asked = WandbIntegration.model_validate(run.settings)
        # Nothing goes there but what the job measured: no console, code, repository, hardware or machine.
        quiet = wandb.Settings(
            init_timeout=INIT_SECONDS,
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run: Any = wandb.init(
            id=run.id,
            project=asked.wandb.project,
            entity=asked.wandb.entity,
            name=run.name,
            tags=integrations.tags(asked, header.model, header.job_id),
            config=header.config,
            dir=str(header.folder),
            resume="allow",
            reinit="create_new",
            settings=quiet,
        )
        self.url, self.step = self._run.url, self._run.step

    @staticmethod
    def environment(folder: Path) -> dict[str, str]:
        ours = settings()
        given = {"WANDB_MODE": ours.wandb_mode, "WANDB_ERROR_REPORTING": "false"}
        given |= {f"WANDB_{kind}_DIR": str(folder / ".library") for kind in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
        if ours.wandb_api_key is not None:
            given["WANDB_API_KEY"] = ours.wandb_api_key.get_secret_value()
        if ours.wandb_base_url is not None:
            given["WANDB_BASE_URL"] = ours.wandb_base_url
        if ours.wandb_entity is not None:
            given["WANDB_ENTITY"] = ours.wandb_entity
        return given

    def log(self, row: Row) -> None:
        self._run.log({"step": row.step, **row.numbers}, step=row.step)

    def flush(self) -> None:
        """The library sends by itself."""

    def finish(self, end: End) -> None:
        if end.end == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if end.end == "succeeded" else 1)
