"""Requests to servers that users name."""
