"""``python -m service.embedded.prepare DATA_FOLDER``: migrate the database, let the logins in, see to a first API key.

A process of its own, so that the login that owns the tables is known to it alone.
"""

import os
import sys
from pathlib import Path

from migrations.upgrade import upgrade
from service.accounts import keys, repository
from service.accounts.service import create_key
from service.core.db import ROLES, transaction
from service.embedded.folder import Folder
from service.embedded.servers import Servers

ORGANIZATION = "default"
NAME = "first"


def main(folder: Folder) -> None:
    upgrade()
    Servers(os.environ["DATABASE_OWNER_URL"], "", {role: folder.password(role) for role in ROLES}).let_in()
    if not _works(folder.first_key):
        with transaction("troll_operator") as session:
            plain, _, _ = create_key(session, organization=ORGANIZATION, name=NAME)
        with os.fdopen(os.open(folder.first_key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(plain)


def _works(key_file: Path) -> bool:
    """Whether the key of an earlier start is still good: not revoked, and of this database and pepper."""
    if not key_file.exists():
        return False
    with transaction("troll_operator") as session:
        return repository.live_key(session, keys.hashed(key_file.read_text())) is not None


if __name__ == "__main__":
    main(Folder(Path(sys.argv[1])))
