"""The made tasks, by name."""

from examples.tasks import additions, journey, ledger, rare

TASKS = {task.name: task for task in (additions.TASK, ledger.TASK, rare.TASK, journey.TASK)}
