"""Adapters and merged models on the Hugging Face hub: fetched as safetensors and JSON only, pushed as saved."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from deepmlf_llm.adapters.base_location import without_paths
from deepmlf_llm.errors import AdapterError

CONFIG, ADAPTER = "adapter_config.json", "adapter"
_FILES = ("*.safetensors", "*.json", "*.md", "*.txt", "*.model", "*.jinja")
"""What an adapter or a merged model consists of, tokenizer included. Nothing that is unpickled is ever fetched."""


def local_directory(name: str | Path, revision: str | None = None) -> Path:
    """``name`` itself if it is a directory here (or the adapter in it, if it is a run), else a copy of the hub's
    repository of that name.

    Args:
        name: a directory, or a hub id, ``owner/name``.
        revision: of the hub's repository.

    Raises:
        AdapterError: neither here nor, as far as can be seen from here, on the hub; or a run without an adapter.
    """
    path = Path(name)
    if str(name) and path.is_dir():
        return _in_run(path)
    expected = f"{name}: expected the directory of a saved adapter, or a hub id, owner/name"
    owner, slash, repository = str(name).partition("/")
    if path.exists() or not (owner and slash and repository) or "/" in repository or owner.startswith((".", "~")):
        raise AdapterError(f"{expected}: there is no such directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:  # huggingface_hub, httpx and urllib3 each raise their own
        raise AdapterError(f"{expected}: the hub gives none ({_reason(error)})") from error


def _in_run(path: Path) -> Path:
    """The directory of the adapter: ``path``, or ``path/adapter`` of a run that has ended.

    Raises:
        AdapterError: a run that has no adapter yet.
    """
    if any((path / config).is_file() for config in (CONFIG, f"fusion/{CONFIG}")):
        return path
    if (path / ADAPTER / CONFIG).is_file():
        return path / ADAPTER
    if (path / "run.json").is_file():
        found = sorted(path.glob("checkpoint-*"), key=lambda p: (len(p.name), p.name))
        hint = f"; its last checkpoint is {found[-1].name}, which can be given as it is" if found else ""
        raise AdapterError(
            f"{path}: a run that has not ended has no adapter yet; the same training command goes on{hint}"
        )
    return path


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
        _leave_out_paths(Path(directory))
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


def _leave_out_paths(directory: Path) -> None:
    """Of the base model's place on this machine, nothing goes to the hub but its last part."""
    for path in directory.rglob(CONFIG):
        values = json.loads(path.read_text(encoding="utf-8"))
        public = without_paths(values)
        if public != values:
            path.write_text(json.dumps(public, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
