"""Parts of OpenAI's API that are not served, and what to use instead."""

_CHAT = "Talk to a model with POST /v1/responses or /v1/chat/completions."
_WEIGHTS = (
    "Talk to a model with POST /v1/responses, or download it with GET /v1/models/{model}/archive and serve it "
    "with any inference server."
)
_GRADERS = (
    "Score answers with POST /v1/fine_tuning/alpha/graders/run, or while training with the job's validation file."
)
_FILES = "Files for fine-tuning go to POST /v1/files."
_ORGANIZATION = (
    "An organization's projects, users, keys and audit log are administered under /v1/organization, with an admin key."
)

ALTERNATIVES = {
    "responses": "Responses are not stored: POST /v1/responses answers at once, and nothing of it is kept.",
    "chat": _CHAT,
    "conversations": _CHAT,
    "assistants": _CHAT,
    "threads": _CHAT,
    "realtime": _CHAT,
    "batches": _WEIGHTS,
    "embeddings": _WEIGHTS,
    "evals": _GRADERS,
    "vector_stores": _FILES,
    "containers": _FILES,
    "organization": _ORGANIZATION,
    "projects": _ORGANIZATION,
    "fine_tunes": "That API is gone; create jobs with POST /v1/fine_tuning/jobs.",
    "moderations": "This service trains language models, see /v1/fine_tuning/jobs.",
    "images": "This service trains language models, see /v1/fine_tuning/jobs.",
    "audio": "This service trains language models, see /v1/fine_tuning/jobs.",
    "videos": "This service trains language models, see /v1/fine_tuning/jobs.",
}


def alternative(path: str) -> str | None:
    """What to use instead of ``path``; None when it is no route of OpenAI's API either."""
    for name, text in ALTERNATIVES.items():
        if path == f"/v1/{name}" or path.startswith(f"/v1/{name}/"):
            return text
    return None
