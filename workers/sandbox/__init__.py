"""The inside of the jail: namespaces, a root of its own, and one process for each program that runs in it.

Everything here runs before or beside code of strangers and is started with ``python -I -S``: it imports the standard
library only and nothing else of this project. ``workers.graders.jail`` is the outside.
"""
