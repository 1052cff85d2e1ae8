"""Why a sample could not be graded: the codes that the API reports, metrics count and events name."""

from typing import Literal, get_args

GradeError = Literal[
    "sample_parse_error",
    "invalid_variable_error",
    "formula_parse_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
]
"""Flags of ``RunErrors`` in ``service.graders.trial``."""
GRADE_ERRORS: tuple[GradeError, ...] = get_args(GradeError)
