"""The README's tables are those of the declarations."""

from pathlib import Path

import pytest

from service.jobs.hyperparameters.table import rewritten

README = Path(__file__).parents[4] / "README.md"


def test_the_readme_has_the_tables_of_the_declarations() -> None:
    text = README.read_text()
    assert text == rewritten(text), "the README's tables of hyperparameters are not as declared: run `make tables`"


def test_what_was_changed_by_hand_is_written_anew() -> None:
    text = README.read_text()
    changed = text.replace("| `kl_bound` | 0.05 |", "| `kl_bound` | 0.5 |")
    assert changed != text
    assert rewritten(changed) == rewritten(text)


def test_a_readme_without_a_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="'supervised'"):
        rewritten(README.read_text().replace("<!-- hyperparameters: supervised -->", ""))
