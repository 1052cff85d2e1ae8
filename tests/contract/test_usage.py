"""The official client's usage resource."""

import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from service.usage import meter
from tests.conftest import Key


@pytest.mark.parametrize("strict", [False, True])
def test_tokens_by_model_page_by_page(
    connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key], strict: bool
) -> None:
    key = new_key()
    client: Any = connect(key, strict=strict, admin_api_key=key.plain)
    for model in ("a", "b", "c"):
        meter.count(key.organization_id, key.project_id, model, input=3, output=4)
    meter.write()
    asked: dict[str, Any] = {"start_time": int(time.time()) - 7200, "bucket_width": "1h", "limit": 1}
    asked |= {"group_by": ["model"], "models": ["a", "c"]}
    found, page = [], None
    while True:
        answer = client.admin.organization.usage.completions(**asked, **({"page": page} if page else {}))
        found += [result for bucket in answer.data for result in bucket.results]
        page = answer.next_page
        if not answer.has_more:
            break
    assert [(each.model, each.input_tokens, each.output_tokens) for each in found] == [("a", 3, 4), ("c", 3, 4)]
