"""Graded answers of the policy: sampling, grading, and what is in flight between steps."""
