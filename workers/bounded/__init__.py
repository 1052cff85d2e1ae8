"""Chat templates and JSON schemas worked on where they can do no harm: in processes of their own, with bounds.

What a template does with the messages it is given, or a library with a schema, is known only by trying, and trying may
take hours or all memory. So it is tried in a process that the kernel ends at ``CPU_SECONDS`` or ``MEMORY_BYTES``.
``python -m workers.bounded`` is small, imports no torch and forks such a process for each request within a few
milliseconds; ``workers.bounded.client`` asks it.
"""
