"""What samples a job's answers, and how the weights that are trained reach it.

The transformers engine samples from the very model that is trained, adapters included, or from a copy that can sample
meanwhile. vLLM has weights of its own: they, or the adapter alone where one is trained, are pushed from memory after
every step, and a probe makes sure that both sides still give the same tokens the same log-probabilities. On a GPU that
both are on, vLLM sleeps while the trainer trains and nothing is sampled ahead.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from service.contracts.engines import MEMORY_SHARE
from service.jobs.hyperparameters.option import Installation, conflicts
from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from workers.errors import RunError
from workers.modeling import ranks
from workers.modeling.policy import Policy
from workers.rollouts.engine import EngineRequest, RolloutEngine
from workers.rollouts.grammar import Grammar
from workers.rollouts.registry import ENGINES

PROBES, PROBE_TOKENS = 4, 128


@dataclass(frozen=True)
class Sampler:
    engine: RolloutEngine
    policy: Policy
    probes: list[list[int]]
    """Token ids of the prompts that are scored by both sides after a push."""
    samples_ahead: bool
    """Whether the engine samples while the trainer trains."""

    def make_room(self) -> None:
        """Have the engine give its GPU memory to the trainer until the next push, unless it samples meanwhile."""
        if not self.samples_ahead:
            self.engine.sleep()

    def push(self) -> None:
        """Bring the engine's weights up to date; one that sleeps is woken. Raises as ``RolloutEngine.push`` does."""
        self.engine.wake()
        self.engine.push(self.policy, self.probes)

    @contextmanager
    def room(self) -> Iterator[None]:
        """Inside, the trainer has the memory of an engine that does not sample meanwhile; afterwards it can sample."""
        self.make_room()
        yield
        if self.engine.asleep:
            self.push()


def make_sampler(
    policy: Policy,
    hyperparameters: ResolvedHyperparameters,
    prompts: Sequence[Sequence[int]],
    longest_answer: int,
    tensor_parallel: int = 1,
    grammar: Grammar | None = None,
    memory_share: float = MEMORY_SHARE,
) -> Sampler:
    """The engine that the job asks for, with the policy's weights; vLLM's is split over ``tensor_parallel`` ranks.

    ``prompts`` are the token ids of all that will be answered, in up to ``longest_answer`` tokens.
    Answers can be held to ``grammar``. ``memory_share`` of the GPU's memory is for vLLM.

    Raises ``EngineUnavailableError`` and ``RunError``.
    """
    probes = [[*prompt[:PROBE_TOKENS]] for prompt in islice((each for each in prompts if len(each) > 1), PROBES)]
    request = EngineRequest(policy, hyperparameters, prompts, longest_answer, tensor_parallel, grammar, memory_share)
    engine = ENGINES[hyperparameters.rollout_engine].of_job(request)
    sampler = Sampler(engine, policy, probes, samples_ahead=hyperparameters.max_staleness > 0)
    sampler.push()
    sampler.engine.check_sampling(policy, probes)
    return sampler


def check_sampler(hyperparameters: ResolvedHyperparameters, tensor_parallel: int) -> None:
    """Refuse, before a model is loaded, what does not go together here; the API did so by its own settings.

    Raises ``RunError``.
    """
    here = Installation(processes=ranks.number(), tensor_parallel=tensor_parallel)
    for name, why in conflicts(hyperparameters, here):
        raise RunError("invalid_hyperparameters", why, param=f"hyperparameters.{name}")
