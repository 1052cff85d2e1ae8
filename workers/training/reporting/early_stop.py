"""Whether a job's evaluations say that training is over: its target is reached, or nothing gets better any more.

What is known of earlier evaluations is among the numbers that go with a checkpoint, so that a resumed run stops where
the one that was never interrupted does.
"""

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters

STOPPED = "stopped_early"
TO_BEAT, WITHOUT = "reward_to_beat", "evaluations_without_gain"

Lasting = dict[str, float | None]


def checkpoint_metrics(known: Lasting, h: ResolvedHyperparameters) -> Lasting:
    """The numbers of the plateau, brought up to date with an evaluation whose mean reward ``known`` has."""
    if not h.early_stopping_patience:
        return {}
    mean, best = known.get("valid_reward_mean"), known.get(TO_BEAT)
    if mean is not None and (best is None or mean > best + h.early_stopping_threshold):
        return {TO_BEAT: mean, WITHOUT: 0.0}
    return {TO_BEAT: best, WITHOUT: (known.get(WITHOUT) or 0.0) + 1}


def reason(known: Lasting, h: ResolvedHyperparameters) -> str | None:
    """Why training ends after an evaluation, in a sentence; None where it goes on."""
    mean = known.get("valid_reward_mean")
    if h.target_reward is not None and mean is not None and mean >= h.target_reward:
        return f"the validation reward is {mean:.4f}, and target_reward {h.target_reward:g}"
    without = int(known.get(WITHOUT) or 0)
    if not h.early_stopping_patience or without < h.early_stopping_patience:
        return None
    best, step = known.get("best_valid_reward_mean"), known.get("best_valid_step")
    so_far = "" if best is None or step is None else f". The best was {best:.4f}, at step {step:.0f}"
    by = f" by more than {h.early_stopping_threshold:g}" if h.early_stopping_threshold else ""
    return f"the validation reward has not risen{by} in {without} evaluations{so_far}"
