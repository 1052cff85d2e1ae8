"""Templates: what parses, what is filled in, and what is refused with which words."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.graders.template import MAX_FILLED, MissingVariableError, Reference, Template, TemplateError, TooLongError

ITEM = {
    "answer": "46",
    "count": 3,
    "ratio": 0.5,
    "flag": True,
    "nothing": None,
    "tags": ["é", 1],
    "a": {"b": [{"c": "deep"}]},
    "two words": "spaced",
}


def fill(text: str, item: dict[str, Any] = ITEM, **sample: Any) -> str:
    return Template.parse(text).render(item=item, sample=sample)


def parts(text: str) -> tuple[str | Reference, ...]:
    return Template.parse(text).parts


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{item.answer}}", "46"),
        ("{{ item.answer }}", "46"),
        ("{{\n item.answer\t}}", "46"),
        ("is {{item.answer}}, {{item.answer}}!", "is 46, 46!"),
        ("{{item.count}} {{item.ratio}} {{item.flag}} {{item.nothing}}", "3 0.5 true null"),
        ("{{item.tags}}", '["é",1]'),
        ("{{item.tags[0]}}", "é"),
        ("{{item.a}}", '{"b":[{"c":"deep"}]}'),
        ("{{item.a.b[0].c}}", "deep"),
        ('{{item["two words"]}}', "spaced"),
        ("{{item['two words']}}", "spaced"),
        ("\\boxed{{{item.answer}}}", "\\boxed{46}"),
        ('{"smiles": "{{item.answer}}"}', '{"smiles": "46"}'),
        ('{"a": {"b": "{{item.answer}}"}}', '{"a": {"b": "46"}}'),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("a } b", "a } b"),
    ],
)
def test_renders(text: str, filled: str) -> None:
    assert fill(text) == filled


def test_renders_the_sample() -> None:
    filled = fill(
        "{{sample.output_text}}|{{sample.output_json.x[1]}}", output_text="t", output_json={"x": [0, {"y": 1}]}
    )
    assert filled == 't|{"y":1}'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{item.a", "'{{' at character 1 is never closed"),
        ("x {{ item.a }", "'{{' at character 3 is never closed"),
        ("item.a}}", "'}}' closes nothing"),
        ("{{item.a}}}}", "'}}' closes nothing"),
        ("{{}}", "names nothing"),
        ("{{ }}", "names nothing"),
        ("{{answer}}", "unknown namespace 'answer'"),
        ("{{items.answer}}", "unknown namespace 'items'"),
        ("{{item}}", "needs a field after 'item'"),
        ("{{item.}}", "cannot read '.'"),
        ("{{item..a}}", "cannot read '..a'"),
        ("{{item a}}", "cannot read ' a'"),
        ("{{item.a | upper}}", "without operators or filters"),
        ("{{item.a|upper}}", "without operators or filters"),
        ("{{item.a + 1}}", "without operators or filters"),
        ("{{item.a[-1]}}", "cannot read '[-1]'"),
        ("{{item.a[b]}}", "cannot read '[b]'"),
        ("{{item.a {{item.b}}", "cannot read ' {{item.b'"),
        ("{{sample}}", "needs a field after 'sample'"),
        ("{{sample.text}}", "a sample has no 'text'"),
        ("{{sample[0]}}", "a sample has no '0'"),
        ("{{sample.output_text.a}}", "for JSON use sample.output_json"),
        ("{{sample.choices[0].message}}", "sample.choices is not supported yet"),
        ("{{sample.choices}}", "sample.choices is not supported yet"),
    ],
)
def test_refusals_say_what_is_wrong_and_most_what_is_allowed(text: str, says: str) -> None:
    with pytest.raises(TemplateError) as error:
        Template.parse(text)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{item.solution}}", "{{item.solution}}: item has no field 'solution' (it has: answer, count, ratio"),
        ("{{item.a.x}}", "item.a has no field 'x' (it has: b)"),
        ("{{item.answer.x}}", "item.answer is a string, not an object"),
        ("{{item.a[0]}}", "item.a is an object, not a list"),
        ("{{item.tags[2]}}", "item.tags has no element 2"),
        ("{{item.tags.x}}", "item.tags is a list, not an object"),
        ("{{item.nothing.x}}", "item.nothing is null, not an object"),
        ("{{sample.output_json.x}}", "sample.output_json is a number, not an object"),
    ],
)
def test_a_missing_variable_names_the_step_that_failed(text: str, says: str) -> None:
    with pytest.raises(MissingVariableError) as error:
        fill(text, output_json=7)
    assert says in str(error.value)


def test_a_missing_variable_carries_its_reference() -> None:
    with pytest.raises(MissingVariableError) as error:
        fill("{{item.x[0]}}")
    assert error.value.reference == Reference("item", ("x", 0))


def test_paths_are_listed_in_order() -> None:
    template = Template.parse("{{item.b}} {{sample.output_text}} {{item.a[0].c}}")
    assert [str(path) for path in template.paths] == ["item.b", "sample.output_text", "item.a[0].c"]


@pytest.mark.parametrize(
    ("text", "needed"), [("{{sample.output_json.a}}", True), ("{{sample.output_text}}", False), ("{{item.a}}", False)]
)
def test_knows_whether_the_answer_must_be_json(text: str, needed: bool) -> None:
    assert Template.parse(text).needs_json is needed


literals = st.text(st.characters(exclude_characters="{}"), min_size=1, max_size=10)
names = st.text(st.characters(exclude_characters="{}'\""), min_size=1, max_size=6)
references = st.builds(
    Reference,
    st.just("item"),
    st.tuples(names) | st.lists(names | st.integers(0, 99), min_size=1, max_size=4).map(tuple),
)


@given(st.lists(literals | references, max_size=6))
def test_what_is_written_is_read_back(pieces: list[str | Reference]) -> None:
    text = "".join(piece if isinstance(piece, str) else f"{{{{{piece}}}}}" for piece in pieces)
    template = Template.parse(text)
    assert str(template) == text
    assert list(template.paths) == [piece for piece in pieces if isinstance(piece, Reference)]
    assert "".join(part for part in template.parts if isinstance(part, str)) == "".join(
        piece for piece in pieces if isinstance(piece, str)
    )


@given(st.text("{}. itemsaplou_x[]0'\"", max_size=40))
def test_any_text_is_a_template_or_a_template_error(text: str) -> None:
    try:
        template = Template.parse(text)
    except TemplateError:
        return
    assert Template.parse(str(template)) == template


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_values_are_rendered_so_that_json_reads_them_back(value: Any) -> None:
    rendered = fill("{{item.value}}", {"value": value})
    assert (rendered if isinstance(value, str) else json.loads(rendered)) == value


def test_adjacent_holes_keep_their_order() -> None:
    assert parts("{{item.a}}{{item.b}}") == (Reference("item", ("a",)), Reference("item", ("b",)))


# Limits


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x" * 256_001, "at most 256000 characters"),
        ("{{item.a}}" * 1001, "at most 1000 times"),
        ("{" * 5000, "at most 1000 times"),
        ("{{item" + ".a" * 101 + "}}", "at most 100 steps"),
        ("{{item" + "[0]" * 50_000 + "}}", "at most 100 steps"),
    ],
)
def test_a_template_has_limits(text: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        Template.parse(text)


@pytest.mark.parametrize("big", ["x" * 1_000_000, list(range(150_000))])
def test_a_text_that_grows_too_long_is_given_up_at_once(big: Any) -> None:
    read: list[str] = []

    class Item(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            read.append(name)
            return super().__getitem__(name)

    with pytest.raises(TooLongError):
        Template.parse("{{item.big}}" * 1000).render(item=Item(big=big), sample={})
    assert len(read) == 2


def test_the_longest_text_is_filled() -> None:
    assert len(fill("{{item.big}}" * 2, {"big": "x" * (MAX_FILLED // 2)})) == MAX_FILLED
