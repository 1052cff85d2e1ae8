"""The engines that a job may ask for, by the names in ``service.contracts.engines``."""

from service.contracts.engines import EngineName
from workers.rollouts.engine import RolloutEngine
from workers.rollouts.transformers import TransformersEngine
from workers.rollouts.vllm.engine import VLLMEngine

ENGINES: dict[EngineName, type[RolloutEngine]] = {
    "transformers": TransformersEngine,
    "vllm": VLLMEngine,
}
