"""What counts of an answer, to its end and before."""

from service.inference.tally import Tally
from service.inference.wire import Delta, End, Event, Started


def counted(*events: Event | None) -> tuple[int, int]:
    tally = Tally()
    for event in events:
        tally.take(event)
    return tally.input, tally.output


def test_the_worker_tells_how_many_tokens_it_were() -> None:
    said = Delta(content="a long answer of few tokens")
    assert counted(Started(prompt_tokens=7), None, said, End(finish_reason="stop", tokens=3)) == (7, 3)


def test_choices_are_added_up() -> None:
    ends = [End(choice=choice, finish_reason="stop", tokens=5) for choice in range(3)]
    assert counted(Started(prompt_tokens=7), *ends) == (7, 15)


def test_what_nobody_waited_for_counts_by_its_characters() -> None:
    events = [Delta(content="12345"), Delta(choice=1, reasoning="1"), Delta(content="678")]
    assert counted(Started(prompt_tokens=7), *events) == (7, 2 + 1)


def test_nothing_counts_of_what_was_not_begun() -> None:
    assert counted(None) == (0, 0)
