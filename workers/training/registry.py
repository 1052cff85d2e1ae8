"""What trains each method, one line each, by its ``type`` in ``service.jobs.methods.registry``."""

from workers.training import evaluate, reinforcement, supervised
from workers.training.method import TrainingMethod

METHODS: dict[str, TrainingMethod] = {
    "supervised": supervised.METHOD,
    "reinforcement": reinforcement.METHOD,
    "evaluation": evaluate.METHOD,
}
