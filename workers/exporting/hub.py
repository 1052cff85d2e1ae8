"""Pushing a folder to a Hugging Face hub, by the token of whoever asked for it."""

import os
from pathlib import Path
from typing import Any

from workers.errors import RunError

MESSAGE = "Upload by TROLL"


def push(folder: Path, *, url: str, token: str, repository: str, private: bool) -> dict[str, Any]:
    """Put the files into the repository, which is made if it is not there. Raises ``RunError``, without the token."""
    # Read when the library is imported. Its other protocol goes to servers that the hub names in passing.
    os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=url, token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        pushed = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=MESSAGE)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reason = {
            401: "it does not know the token",
            403: f"the token may not write to '{repository}'",
            404: f"there is no '{repository}' that the token may write to",
        }.get(status or 0, f"it answered with status {status}")
        raise RunError("hub_refused", f"The hub at {url} did not take the export: {reason}.") from None
    except (httpx2.HTTPError, OSError) as error:
        kind = type(error).__name__
        raise RunError("hub_unreachable", f"The hub at {url} could not be reached ({kind}). Try again later.") from None
    return {"url": f"{url}/{repository}", "revision": pushed.oid}
