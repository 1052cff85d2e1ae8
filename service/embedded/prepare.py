"""``python -m service.embedded.prepare DATA_FOLDER``: migrate the database, let the logins in, see that the data folder
is the database's own, and to a first API key.

A process of its own, so that the login that owns the tables is known to it alone.
"""

import os
import sys
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from migrations.upgrade import upgrade
from service.accounts import keys, repository
from service.accounts.service import create_key
from service.core.db import LOGINS, driver_url, transaction
from service.embedded.folder import Folder
from service.embedded.servers import Servers
from service.installation import service as installation

ORGANIZATION = "default"
NAME = "first"


def main(folder: Folder) -> None:
    upgrade()
    servers = Servers(os.environ["DATABASE_OWNER_URL"], "", {login: folder.password(login) for login in LOGINS})
    servers.let_in()
    # Control's login sees the files and jobs of all; this process itself is the operator.
    control = create_engine(driver_url(servers.database_url("troll_control")))
    try:
        with Session(control) as session, session.begin():
            installation.tie(session)
    except installation.MismatchError as error:
        sys.exit(str(error))
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
        return repository.is_live_hash(session, keys.hashed(key_file.read_text()))


if __name__ == "__main__":
    main(Folder(Path(sys.argv[1])))
