"""Merged events say what they said one by one, for every choice."""

from hypothesis import given
from hypothesis import strategies as st

from service.inference.wire import Delta, End, Event, TokenLogprob, ToolCall, merged

CALL = ToolCall(id="call_1", name="f", arguments="{}")


def deltas(choice: int) -> st.SearchStrategy[Delta]:
    text = st.sampled_from(["a", "b", "c"])
    scored = st.builds(lambda token: [TokenLogprob(token=token, logprob=-1.0, offset=0)], text)
    return st.one_of(
        st.builds(lambda content, logprobs: Delta(choice=choice, content=content, logprobs=logprobs), text, scored),
        st.builds(lambda reasoning: Delta(choice=choice, reasoning=reasoning), text),
        st.just(Delta(choice=choice, tool_calls=[CALL])),
    )


def told(events: list[Event], choice: int) -> list[object]:
    """What a choice says, part by part, in order."""
    parts: list[object] = []
    for event in events:
        if isinstance(event, Delta) and event.choice == choice:
            parts += [*(("r", c) for c in event.reasoning), *(("c", c) for c in event.content), *event.tool_calls]
        elif isinstance(event, End) and event.choice == choice:
            parts.append(event.finish_reason)
    return parts


@given(st.lists(st.one_of(deltas(0), deltas(1)), max_size=20))
def test_nothing_is_lost_or_told_in_another_order(some: list[Event]) -> None:
    events = [*some, End(choice=0, finish_reason="stop", tokens=1), End(choice=1, finish_reason="stop", tokens=1)]
    for choice in (0, 1):
        assert told(merged(events), choice) == told(events, choice)
    scores = [each.token for event in events if isinstance(event, Delta) for each in event.logprobs]
    kept = [each.token for event in merged(events) if isinstance(event, Delta) for each in event.logprobs]
    assert sorted(kept) == sorted(scores)


def test_text_that_follows_text_becomes_one() -> None:
    events: list[Event] = [Delta(content=c, choice=n) for c in "abc" for n in (0, 1)]
    assert merged(events) == [Delta(content="abc", choice=0), Delta(content="abc", choice=1)]
