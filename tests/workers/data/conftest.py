"""The fixtures of training: what is loaded and exported here is trained there."""

from tests.workers.training.conftest import base, execute, make_spec, one_thread

__all__ = ["base", "execute", "make_spec", "one_thread"]
