"""Rollouts by vLLM, in this process, with weights of its own that are pushed to it from memory.

vLLM is imported when an engine starts, not before: the package can be imported where vLLM is not installed.
"""

from workers.rollouts.vllm.engine import VLLMEngine
from workers.rollouts.vllm.start import EngineSettings

__all__ = ["EngineSettings", "VLLMEngine"]
