"""The engines that a job may ask for, by the names in ``service.engines``."""

from service.engines import EngineName
from workers.rollouts.engine import RolloutEngine
from workers.rollouts.transformers import TransformersEngine
from workers.rollouts.vllm.engine import VLLMEngine

ENGINES: dict[EngineName, type[RolloutEngine]] = {
    "transformers": TransformersEngine,
    "vllm": VLLMEngine,
}
