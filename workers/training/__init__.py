"""The training child: one process that trains one model and speaks ``workers.wire`` on a socket.

Importing this package imports no torch; ``python -m workers.training`` does, before it waits for a job.
"""
