"""Metrics of jobs to experiment trackers."""
