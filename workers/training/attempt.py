"""An attempt at a job, whatever its method: what it begins from, where it is, and how what it made is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from service.jobs.hyperparameters.shared import SharedHyperparameters
from service.jobs.spec import RunSpec
from workers import wire
from workers.data.templating import Rendering, rendering_of
from workers.modeling import distributed, policy, sharding
from workers.modeling.compilation import CompilationError
from workers.modeling.critic import load_critic
from workers.modeling.export import export, share_unchanged
from workers.modeling.lora import Lora
from workers.training import checkpoint, preflight
from workers.training.checkpoint import TrainerState
from workers.training.optim import update
from workers.training.optim.critic import Critic
from workers.training.processes.channel import Channel
from workers.training.reporting.clock import Clock

MOSTLY_UNCHANGED = 0.95
"""Share of a result's weights from which on a job is told that they are the base model's."""


@dataclass(kw_only=True)
class Attempt:
    """What every attempt works with."""

    spec: RunSpec
    channel: Channel
    clock: Clock
    policy: policy.Policy
    optimizer: torch.optim.AdamW
    trainer: TrainerState
    rendering: Rendering
    resumed: Path | None
    """The checkpoint it goes on from."""
    critic: Critic | None


def begin(
    spec: RunSpec,
    hyperparameters: SharedHyperparameters,
    channel: Channel,
    clock: Clock,
    *,
    with_critic: bool = False,
) -> Attempt:
    """Load the newest intact checkpoint, or the base model where there is none; ``with_critic`` beside it."""
    torch.manual_seed(spec.job.seed)
    device = distributed.join()
    # Only one of several ranks has to read and hash everything.
    resumed = distributed.from_first(find_checkpoint(spec, channel) if distributed.rank() == 0 else None)
    with clock("loading"):
        loaded = load_policy(spec, hyperparameters, device, resumed)
        rendering = rendering_of(hyperparameters, loaded.tokenizer, spec.now)
        loaded.template_values = rendering.values
        if distributed.size() > 1:
            sharding.shard(loaded)
        optimizer = update.make_optimizer(loaded, hyperparameters)
        critic = make_critic(spec, hyperparameters, device) if with_critic else None
        if hyperparameters.torch_compile == "gpu" and device.type == "cuda" and distributed.size() == 1:
            compile_layers(loaded, channel)
            if critic is not None:
                compile_layers(critic.model, channel, "critic")
        trainer = checkpoint.restore(resumed, loaded, optimizer, critic) if resumed else TrainerState()
    left = hyperparameters.n_steps - trainer.step
    preflight.check_disk_room(spec, loaded, left, hyperparameters.eval_interval, critic)
    return Attempt(
        spec=spec,
        channel=channel,
        clock=clock,
        policy=loaded,
        optimizer=optimizer,
        trainer=trainer,
        rendering=rendering,
        resumed=resumed,
        critic=critic,
    )


def load_policy(
    spec: RunSpec,
    hyperparameters: SharedHyperparameters,
    device: torch.device,
    resumed: Path | None,
) -> policy.Policy:
    """The model to train. Adapters are restored into the base model; whole weights are the checkpoint's."""
    adapters = adapters_of(spec, hyperparameters)
    folder = resumed / checkpoint.MODEL if resumed and not adapters else spec.model_path
    return policy.load(folder, device, adapters, recompute=hyperparameters.gradient_checkpointing)


def make_critic(spec: RunSpec, hyperparameters: SharedHyperparameters, device: torch.device) -> Critic:
    """The critic as it is before the first step, of the base model whatever the policy is by now."""
    h = hyperparameters
    model = load_critic(spec.model_path, device, adapters_of(spec, h), recompute=h.gradient_checkpointing)
    if distributed.size() > 1:
        sharding.shard(model)
    return Critic(model, update.make_optimizer(model, h))


def compile_layers(model: policy.Policy, channel: Channel, what: str = "model") -> None:
    """Compile them, or say why they are not."""
    try:
        model.compile()
    except CompilationError as error:
        channel.say(
            f"The {what}'s layers were not compiled, so training is slower than it could be: {error}",
            level="warn",
            key=f"{what}-not-compiled",
        )


def adapters_of(spec: RunSpec, hyperparameters: SharedHyperparameters) -> Lora | None:
    h = hyperparameters
    return Lora(h.lora_rank, h.lora_alpha, spec.job.seed, spec.job.model) if h.lora_rank else None


def find_checkpoint(spec: RunSpec, channel: Channel) -> Path | None:
    """The newest checkpoint of earlier attempts that can be gone on from; others are reported and passed over."""
    folder, unusable = checkpoint.find_usable(spec.checkpoints)
    for path, reason in unusable.items():
        channel.say(
            f"Checkpoint {path.name} was passed over: {reason}",
            level="warn",
            key=f"unusable-{path.name}-{spec.attempt}",
        )
    return folder


def tell_start(attempt: Attempt) -> None:
    """Say that everything is loaded, and what training goes on from."""
    spent = {"loading_seconds": attempt.clock.seconds["loading"]}
    if attempt.resumed:
        message = f"Training resumed from the checkpoint of step {attempt.trainer.step}"
        attempt.channel.say(message, data=spent, key=f"resumed-{attempt.spec.attempt}")
    else:
        attempt.channel.say("Training started", data=spent, key="started")


def tell_progress(attempt: Attempt, step: int, total: int, expected: float | None = None) -> None:
    """Say where the attempt is and how long the rest will take: at the pace so far, or as ``expected`` before that."""
    trainer = attempt.trainer
    left = trainer.seconds / step * (total - step) if step else expected
    attempt.channel.send(
        wire.Progress(step=step, total_steps=total, trained_tokens=trainer.trained_tokens, seconds_left=left)
    )


def save(attempt: Attempt, write_more: Callable[[Path], None] | None = None) -> None:
    """Write a checkpoint of the step at hand, with what ``write_more`` adds to its state, and tell where it is."""
    trainer = attempt.trainer
    folder = checkpoint.folder_of(attempt.spec.output_dir, trainer.step)
    with attempt.clock("saving"):
        checkpoint.save(folder, attempt.policy, attempt.optimizer, trainer, write_more, attempt.critic)
    seconds = attempt.clock.lap()["saving"]
    trainer.seconds += seconds
    attempt.channel.say(
        f"Checkpoint created at step {trainer.step}",
        data={"step": trainer.step, "seconds": seconds},
        key=f"checkpoint-{trainer.step}",
    )
    attempt.channel.send(wire.Checkpoint(step=trainer.step, path=folder, metrics=trainer.metrics))


def save_where_it_stopped(attempt: Attempt, write_more: Callable[[Path], None] | None = None) -> None:
    """A checkpoint, unless the step has one or nothing was trained yet."""
    folder = checkpoint.folder_of(attempt.spec.output_dir, attempt.trainer.step)
    resumed_here = attempt.resumed is not None and attempt.resumed.name == folder.name
    if attempt.trainer.step > 0 and not folder.exists() and not resumed_here:
        save(attempt, write_more)


def finish(attempt: Attempt) -> None:
    """Write the final model and tell the result."""
    folder = attempt.spec.output_dir / "model"
    with attempt.clock("saving"):
        export(attempt.policy, folder)
        warn_if_little_moved(attempt, folder)
    trainer = attempt.trainer
    attempt.channel.send(
        wire.Result(
            model_path=folder, step=trainer.step, trained_tokens=trainer.trained_tokens, metrics=trainer.metrics
        )
    )


def warn_if_little_moved(attempt: Attempt, folder: Path) -> None:
    """Say where most weights of the model in ``folder`` are the base model's: steps too small for how it is stored."""
    if distributed.rank() > 0 or not attempt.policy.rounded:
        return
    share = share_unchanged(folder, attempt.spec.model_path)
    if share > MOSTLY_UNCHANGED:
        stored = str(attempt.policy.saved_dtype).removeprefix("torch.")
        attempt.channel.say(
            f"{share:.1%} of the result's weights are those of the base model: in {stored}, which it is stored in, the "
            "others' changes are too small to show. Where more was to be learned, raise learning_rate or n_steps.",
            level="warn",
            data={"weights_unchanged": share},
            key="weights-unchanged",
        )
