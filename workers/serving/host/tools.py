"""Tool calls in the notation of Hermes and Qwen, the one that can be told from a model's chat template.

<tool_call>
{"name": "weather", "arguments": {"city": "Paris"}}
</tool_call>
"""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from service.core.ids import new_id
from service.inference.wire import ToolCall

OPENS, CLOSES = "<tool_call>", "</tool_call>"
OTHER_NOTATIONS = ("<function=", "<arg_key>")
"""Templates that use the same marks around calls written in another way."""


def can_call(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template teaches the model this notation, and its tokens survive decoding."""
    template = str(tokenizer.chat_template or "")
    if OPENS not in template or "arguments" not in template or any(other in template for other in OTHER_NOTATIONS):
        return False
    return not {OPENS, CLOSES} & set(tokenizer.all_special_tokens)


def parse(text: str) -> ToolCall | None:
    """The call that ``text`` says, or None when it says none."""
    try:
        call: Any = json.loads(text)
    except ValueError:
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    return ToolCall(id=new_id("call_"), name=call["name"], arguments=json.dumps(arguments, ensure_ascii=False))
