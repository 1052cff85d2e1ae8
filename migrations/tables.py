"""Every table, imported, so that ``Base.metadata`` is whole wherever it is compared or walked."""

from service.accounts.models import APIKey, Organization
from service.core.db import Base
from service.files.models import File
from service.idempotency.models import KeptAnswer
from service.installation.models import Installation
from service.jobs.models import Checkpoint, Event, Examination, Job
from service.models.models import TunedModel
from service.uploads.models import Upload, UploadPart
from service.usage.models import OrganizationLimits, TokenUsage
from service.webhooks.models import WebhookDelivery, WebhookEndpoint

__all__ = [
    "APIKey",
    "Base",
    "Checkpoint",
    "Event",
    "Examination",
    "File",
    "Installation",
    "Job",
    "KeptAnswer",
    "Organization",
    "OrganizationLimits",
    "TokenUsage",
    "TunedModel",
    "Upload",
    "UploadPart",
    "WebhookDelivery",
    "WebhookEndpoint",
]
