"""Every table, imported, so that ``Base.metadata`` is whole wherever it is compared or walked."""

from service.accounts.models import APIKey, Operator, Organization, Project, ProjectUser, ServiceAccount, User
from service.audit.models import AuditLog
from service.core.db import Base
from service.exports.models import Export
from service.files.models import File
from service.idempotency.models import KeptAnswer
from service.installation.models import Installation
from service.jobs.models import Checkpoint, CheckpointPermission, Event, Examination, Job, MetricBlock
from service.models.models import TunedModel
from service.scheduling.models import GPUUsage, ProjectGPUUsage, Worker
from service.uploads.models import Upload, UploadPart
from service.usage.models import OrganizationLimits, ProjectTokenUsage, TokenUsage
from service.webhooks.models import WebhookDelivery, WebhookEndpoint

__all__ = [
    "APIKey",
    "AuditLog",
    "Base",
    "Checkpoint",
    "CheckpointPermission",
    "Event",
    "Examination",
    "Export",
    "File",
    "GPUUsage",
    "Installation",
    "Job",
    "KeptAnswer",
    "MetricBlock",
    "Operator",
    "Organization",
    "OrganizationLimits",
    "Project",
    "ProjectGPUUsage",
    "ProjectTokenUsage",
    "ProjectUser",
    "ServiceAccount",
    "TokenUsage",
    "TunedModel",
    "Upload",
    "UploadPart",
    "User",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
]
