"""Adapters and merged models on the Hugging Face hub: fetched as safetensors and JSON only, pushed as saved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from deepmlf_llm.errors import AdapterError

_FILES = ("*.safetensors", "*.json", "*.md", "*.txt", "*.model", "*.jinja")
"""What an adapter or a merged model consists of, tokenizer included. Nothing that is unpickled is ever fetched."""


def local_directory(name: str | Path, revision: str | None = None) -> Path:
    """``name`` itself if it is a directory here, else a copy of the hub's repository of that name.

    Args:
        name: a directory, or a hub id, ``owner/name``.
        revision: of the hub's repository.

    Raises:
        AdapterError: neither here nor, as far as can be seen from here, on the hub.
    """
    path = Path(name)
    if str(name) and path.is_dir():
        return path
    expected = f"{name}: expected the directory of a saved adapter, or a hub id, owner/name"
    owner, slash, repository = str(name).partition("/")
    if path.exists() or not (owner and slash and repository) or "/" in repository or owner.startswith((".", "~")):
        raise AdapterError(f"{expected}: there is no such directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:  # huggingface_hub, httpx and urllib3 each raise their own
        raise AdapterError(f"{expected}: the hub gives none ({_reason(error)})") from error


def push(save: Callable[[Path], None], repository: str, private: bool | None = None, message: str | None = None) -> str:
    """Saves into a directory of its own and uploads it as one commit.

    Args:
        save: writes the files.
        repository: ``owner/name``; made if it is not there.
        private, message: of the repository, of the commit.

    Returns:
        Address of the commit.

    Raises:
        AdapterError: offline, no such account, no permission; nothing has been uploaded.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise AdapterError(
            f"push_to_hub({repository!r}): offline mode is on (HF_HUB_OFFLINE=1); save_pretrained(directory) writes "
            "the same files, to be uploaded later with `hf upload`"
        )
    api = HfApi()
    with tempfile.TemporaryDirectory() as directory:
        save(Path(directory))
        try:
            identity = api.create_repo(repository, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=identity, folder_path=directory, commit_message=message or "DeepMLF, by deepmlf_llm"
            )
        except Exception as error:  # as above
            raise AdapterError(
                f"push_to_hub({repository!r}): the hub did not take it ({_reason(error)}); save_pretrained(directory) "
                "writes the same files, to be uploaded later with `hf upload`"
            ) from error
    return str(commit.commit_url)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
