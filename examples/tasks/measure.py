"""What a model can do: its answers to rows, by the task's own grader, with random numbers that are always the same."""

from pathlib import Path
from typing import Any

from examples.tasks.task import Task

SEED = 2026


def answers(model: Path, task: Task, rows: Path, temperature: float, seed: int = SEED) -> dict[str, Any]:
    """One answer to each row: ``success``, "1" or "0" for each in ``right``, mean length, and an example.

    A fixed seed gives every model the same random numbers, so that a difference between models is not the sampler's.
    """
    import torch

    from service.graders.schemas import parse_grader
    from workers.answers import AnswerReader
    from workers.data.prompts import load_prompts
    from workers.graders import build
    from workers.graders.grading import GraderSample
    from workers.modeling import policy
    from workers.rollouts.engine import Sampling
    from workers.rollouts.transformers import TransformersEngine

    loaded = policy.load(model, torch.device("cpu"))
    prompts = load_prompts(rows, loaded.tokenizer, loaded.context_length, "rows")
    engine = TransformersEngine(loaded.model, loaded.stop_ids, loaded.context_length)
    asked = [prompt.token_ids for prompt in prompts]
    sampling = Sampling(temperature, task.max_completion_tokens, seed)
    given = [group[0].token_ids for group in engine.generate(asked, 1, sampling)]
    read = AnswerReader(loaded.tokenizer).read(asked, given)
    samples = [GraderSample(prompt.item, answer.text) for prompt, answer in zip(prompts, read, strict=True)]
    rewards = [grade.reward for grade in build(parse_grader(task.grader, "grader")).grade(samples)]
    right = "".join("1" if reward == 1 else "0" for reward in rewards)
    return {
        "success": right.count("1") / len(right),
        "right": right,
        "tokens_mean": sum(map(len, given)) / len(given),
        "example": {"question": prompts[0].item["messages"][-1]["content"], "answer": read[0].text},
    }


def pass_at_1(model: Path, task: Task, rows: Path) -> dict[str, dict[str, Any]]:
    """Greedy and sampled."""
    return {"greedy": answers(model, task, rows, 0.0), "sampled": answers(model, task, rows, 1.0)}
