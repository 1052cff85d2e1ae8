"""Serving models: a light process that takes questions from Redis, and one process with torch for each loaded model."""
