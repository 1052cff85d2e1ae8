"""The data of metrics events, as trainers tell it, PostgreSQL keeps it and the API documents it.

A mean over answers that a step has not (``valid_…`` where nothing was evaluated) is null. Beside each mean reward, its
``…_count`` says how many answers it was taken over: those that have a reward. What is stored is shown as it is: an
event of another version may have other names.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Mean = float | None
Count = int | None


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartScores(_Told):
    train_reward_mean: Mean
    valid_reward_mean: Mean
    train_reward_count: Count
    valid_reward_count: Count


class GraderScores(PartScores):
    name: str
    type: str


class Scores(PartScores):
    graders: list[GraderScores] = Field(description="Of each part of a multi grader, or of the grader.")


class Usage(_Told):
    graders: list[dict[str, Any]] = Field(description="Tokens that each judge used.")
    samples: dict[str, int | float | None] = Field(description="Reasoning tokens of the answers.")


class Errors(_Told):
    graders: list[dict[str, Any]] = Field(description="Share and number of the answers that met each error, by grader.")


class Latency(_Told):
    name: str
    type: str
    train_execution_latency_mean: Mean
    valid_execution_latency_mean: Mean


class Timing(_Told):
    step: dict[str, float] = Field(description="Seconds of the step by phase; `full_iteration` is all of it.")
    graders: list[Latency]


class Completions(_Told):
    """Of the answers that the step learned from."""

    mean_length: Mean
    min_length: Count
    max_length: Count
    clipped_ratio: Mean = Field(description="Share that reached `max_completion_tokens`.")


class ValidationStatistics(_Told):
    """Of an evaluation with k answers to each row; rows whose answers all lack a reward are left out."""

    rows: int
    answers_per_row: int = Field(description="k.")
    mean_at_k: float = Field(description="Mean over rows of their answers' mean reward.")
    reward_mean_low: float = Field(description="95 % interval of `mean_at_k`, by a bootstrap over rows.")
    reward_mean_high: float
    best_at_k: float = Field(description="Mean over rows of the best answer's reward.")
    best_at_k_low: float
    best_at_k_high: float
    majority_at_k: float = Field(
        description="Mean over rows of the reward of the answer that was given most often, by what the grader read "
        "out of it or else by its text."
    )
    majority_at_k_low: float
    majority_at_k_high: float
    pass_at_k: dict[str, Mean] = Field(
        description="Share of rows that 1, 2, 4, … and k answers solve: one has the most that the grader gives."
    )
    pass_at_k_low: dict[str, Mean]
    pass_at_k_high: dict[str, Mean]


class ShownSample(_Told):
    prompt: str
    answer: str
    reward: float | None


class ReinforcementMetrics(_Told):
    """One step of reinforcement; step 0 is the evaluation before training."""

    step: int
    total_steps: int
    train_mean_reward: Mean
    full_valid_mean_reward: Mean
    full_valid_mean_parse_error: Mean
    mean_unresponsive_rewards: Mean = Field(description="Share of the answers that have no reward.")
    reasoning_tokens_mean: Mean
    valid_reasoning_tokens_mean: Mean
    completion_tokens_mean: Mean
    valid_completion_tokens_mean: Mean
    model_graders_token_usage: dict[str, dict[str, int]] = Field(description="What judges used, by model.")
    reward_std: Mean = Field(description="Mean of the groups' standard deviations of rewards.")
    frac_reward_zero_std: Mean = Field(description="Share of the groups whose rewards are all the same.")
    scores: Scores
    usage: Usage
    errors: Errors
    timing: Timing
    completions: Completions
    troll: dict[str, float | None] = Field(description="What the objective and its updates measure.")
    samples: list[ShownSample] = Field(description="A few answers to validation rows.")
    validation: ValidationStatistics | None = Field(description="How sure the mean is, and what k answers can do.")
    validation_sets: dict[str, ValidationStatistics | None] = Field(
        description="The same of each validation set, by its name; null where nothing was evaluated or has a reward."
    )


class SupervisedTiming(_Told):
    step: dict[str, float]


class EvaluationMetrics(_Told):
    """A validation set that was evaluated, told at the step that answered the last of its rows."""

    step: int
    total_steps: int
    validation_sets: dict[str, ValidationStatistics | None] = Field(
        description="The set's figures, by its name; null where no answer has a reward."
    )
    reward_count: dict[str, int] = Field(description="Answers that have a reward, by the set's name.")
    parse_error_mean: dict[str, Mean] = Field(description="Share of the answers that the grader could not read.")
    completion_tokens_mean: dict[str, Mean] = Field(description="By the set's name.")
    clipped_ratio: dict[str, Mean] = Field(description="Share that reached `max_completion_tokens`, by name.")
    model_graders_token_usage: dict[str, dict[str, int]] = Field(description="What judges used, by model.")
    timing: SupervisedTiming
    samples: list[ShownSample] = Field(description="A few answers.")


class SupervisedMetrics(_Told):
    """One step of supervised fine-tuning; step 0 is the evaluation before training."""

    step: int
    total_steps: int
    train_loss: Mean
    train_mean_token_accuracy: Mean
    valid_loss: Mean
    valid_mean_token_accuracy: Mean
    full_valid_loss: Mean
    full_valid_mean_token_accuracy: Mean
    train_tokens: Count
    timing: SupervisedTiming
    troll: dict[str, float]
