"""What ties a database to its data folder."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base


class Installation(Base):
    """The one row of its table, which the migration makes.

    ``beats`` are the newest of the random texts that are written here and then into the folder, again and again: a
    database that was set back to an earlier time does not know the folder's. Until ``careful_until`` nothing is deleted
    only because no row names it.
    """

    __tablename__ = "installation"

    id: Mapped[str] = mapped_column(primary_key=True)
    beats: Mapped[list[str]] = mapped_column(server_default="[]")
    tied_at: Mapped[datetime | None]
    """When a folder was tied to it first."""
    careful_until: Mapped[datetime | None]
