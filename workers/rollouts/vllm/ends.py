"""Which tokens vLLM lets follow an answer that fits its JSON schema: all that end answers, as everywhere here."""

from collections.abc import Sequence
from typing import Any

from workers.rollouts.grammar import tokens_of


def end_with(stop_ids: Sequence[int]) -> None:
    """Have the engines of this process end such answers with any of ``stop_ids``; by itself vLLM knows but one."""
    from vllm.v1.structured_output.backend_guidance import GuidanceBackend

    def build(tokenizer: Any, vocab_size: int) -> Any:
        return tokens_of(tokenizer, vocab_size, [token for token in stop_ids if token < vocab_size])

    GuidanceBackend._build_ll_tokenizer = staticmethod(build)
