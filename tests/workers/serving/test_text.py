"""Text comes in whole characters, joins to what decoding at once gives, and shows nothing of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from tests.workers.serving import tiny
from workers.serving.host.text import Detokenizer, Scanner

TOKENIZER = tiny.tokenizer()
PLAIN = [id for id in range(len(TOKENIZER)) if id not in TOKENIZER.all_special_ids]


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@given(st.text(max_size=40))
def test_the_parts_of_a_text_join_to_it_and_hold_whole_characters(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    parts = [detokenizer.push(id) for id in TOKENIZER(text, add_special_tokens=False)["input_ids"]]
    if "�" not in text:
        assert all("�" not in part for part in parts)
    assert "".join(parts) + detokenizer.flush() == text


@given(st.lists(st.sampled_from(PLAIN), max_size=40))
def test_the_parts_of_any_tokens_join_to_their_text(ids: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert "".join(detokenizer.push(id) for id in ids) + detokenizer.flush() == decode(ids)


def test_a_character_of_many_tokens_comes_at_once() -> None:
    ids = TOKENIZER("😀", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.push(id) for id in ids] == [""] * (len(ids) - 1) + ["😀"]


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_scanner_cuts_where_searching_the_whole_text_would(parts: list[str], stops: list[str]) -> None:
    scanner, said, stopped = Scanner(stops), "", None
    for part in parts:
        before, stopped = scanner.push(part)
        said += before
        if stopped:
            break
    whole = "".join(parts)
    if stopped is None:
        assert not any(stop in whole for stop in stops)
        assert said + scanner.flush() == whole
    else:
        assert whole.startswith(said + stopped)
        assert not any(stop in said for stop in stops)


def test_what_may_become_a_stop_string_is_held_back() -> None:
    scanner = Scanner(["END"])
    assert scanner.push("the E") == ("the ", None)
    assert scanner.push("N") == ("", None)
    assert scanner.push("emy") == ("ENemy", None)
