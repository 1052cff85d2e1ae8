"""``code_tests``: does the program in the answer pass its tests?"""

from typing import Annotated, Literal

from pydantic import Field

from service.graders.bounds import EITHER, FRACTION, Interval
from service.graders.definition import OUTPUT_TEXT, GraderDefinition, GraderName, TemplateText


class CodeTests(GraderDefinition):
    """1.0 when the program in ``input`` passes all ``tests``, else 0.0; with ``partial`` the fraction that it passes.

    The program is the last fenced block of Python in ``input``, or all of it. ``tests`` is a template that gives a JSON
    list, each entry of it ``{"stdin", "stdout"}``, ``{"call", "expected"}`` or the text ``assert call == literal``.
    ``timeout_seconds`` is for each script, and for all calls of an answer together.
    """

    runs_code = True

    type: Literal["code_tests"]
    name: GraderName = "code_tests"
    input: TemplateText = OUTPUT_TEXT
    tests: TemplateText
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 10.0
    partial: bool = False

    def templates(self) -> list[str]:
        return [self.input, self.tests]

    def bounds(self) -> Interval:
        return FRACTION if self.partial else EITHER
