"""Every table, imported, so that ``Base.metadata`` is whole wherever it is compared or walked."""

from service.accounts.models import APIKey, Organization
from service.core.db import Base
from service.files.models import File
from service.jobs.models import Checkpoint, Event, Job
from service.models.models import TunedModel

__all__ = ["APIKey", "Base", "Checkpoint", "Event", "File", "Job", "Organization", "TunedModel"]
