"""The directory of one run: who may write there, where it was cut, and its files, each complete or absent.

``config.yaml`` (every setting; reads with ``--config``), ``run.json`` (what the settings met: data, processes),
``metrics.jsonl``, ``checkpoint-<step>/``, ``adapter/``, ``result.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deepmlf_llm.errors import RunError
from deepmlf_llm.files import make_directory, replace_directory, write_aside
from deepmlf_llm.paths import shown
from deepmlf_llm.reading import read_json, read_yaml
from deepmlf_llm.training import checkpoints
from deepmlf_llm.training.metrics_log import finite

CONFIG, FACTS, RESULT, ADAPTER, LOCK = "config.yaml", "run.json", "result.json", "adapter", ".lock"


class RunDirectory:
    """A run's files at ``path``.

    Args:
        path: need not exist.
        settings: the run's, as ``RunSettings.to_dict()``.
        fingerprint: of all that decides what is computed; the same for a run and its continuation.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], fingerprint: str) -> None:
        self.path = path
        self.settings = dict(settings)
        self.fingerprint = fingerprint

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER

    def check(self) -> None:
        """Refuses a place that is not this run's; writes nothing.

        Raises:
            RunError: the directory holds something else, or another run (the message names what differs).
        """
        if not self.path.exists():
            return
        name = shown(self.path)
        if not self.path.is_dir():
            raise RunError(f"output_dir={name}: is a file")
        facts = self.path / FACTS
        if not facts.is_file():
            if any(entry.name != LOCK for entry in self.path.iterdir()):
                raise RunError(f"output_dir={name}: holds something that is no run; choose another")
            return
        try:
            stored = read_json(facts)["fingerprint"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"output_dir={name}: its {FACTS} is damaged; choose another directory") from None
        if stored != self.fingerprint:
            raise RunError(f"output_dir={name}: holds another run ({self._difference()}); choose another directory")

    def holds_this_run(self) -> bool:
        """Whether this very run was begun here before."""
        try:
            facts = json.loads((self.path / FACTS).read_text())
        except (OSError, ValueError):
            return False
        return isinstance(facts, dict) and facts.get("fingerprint") == self.fingerprint

    def finished(self) -> dict[str, Any] | None:
        """The result, where this run has ended before."""
        path = self.path / RESULT
        if not path.is_file():
            return None
        try:
            result: dict[str, Any] = read_json(path)
        except ValueError:
            raise RunError(f"{shown(path)}: damaged; delete it to finish the run again") from None
        return result

    @contextmanager
    def claimed(self, facts: Mapping[str, Any], main: bool) -> Iterator[None]:
        """Takes the directory for this process' run, and frees it at the end, or when the process is killed.

        Raises:
            RunError: another process is at work there.
            FileError: the directory cannot be made.
        """
        if not main:
            yield
            return
        from filelock import FileLock, Timeout

        make_directory(self.path)
        lock = FileLock(str(self.path / LOCK), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(f"output_dir={shown(self.path)}: another process is training there") from None
        try:
            self.check()
            if not (self.path / FACTS).is_file():
                self._write_facts(facts)
            yield
        finally:
            lock.release()

    def resume_from(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, and a sentence for each that was skipped."""
        newest, skipped = checkpoints.newest_whole(self.path)
        return newest, [f"skipped {path.name}: {reason}" for path, reason in skipped.items()]

    def write_result(self, result: Mapping[str, Any]) -> None:
        """``result.json``; it appears complete, and last of all."""
        text = json.dumps(finite(dict(result)), indent=2, ensure_ascii=False, allow_nan=False, default=str)
        write_aside(self.path / RESULT, text + "\n")

    @property
    def adapter_aside(self) -> Path:
        """Where the adapter is written before it gets its name."""
        return self.path / f".{ADAPTER}.partial"

    def publish_adapter(self) -> None:
        """Renames the adapter written aside to its place."""
        replace_directory(self.adapter_aside, self.adapter)

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        text = yaml.safe_dump({k: v for k, v in self.settings.items() if v is not None}, sort_keys=False)
        write_aside(self.path / CONFIG, text)
        record = {"schema": 1, "fingerprint": self.fingerprint, **facts}
        write_aside(self.path / FACTS, json.dumps(record, indent=1) + "\n")

    def _difference(self) -> str:
        """Names the settings that differ from those stored."""
        try:
            stored = read_yaml(self.path / CONFIG) or {}
        except (OSError, ValueError):
            return "its settings cannot be read"
        given = {name: value for name, value in self.settings.items() if value is not None}
        differing = sorted(n for n in {*stored, *given} - {"output_dir"} if stored.get(n) != given.get(n))
        if not differing:
            return "same settings, other data or number of processes"
        return "other " + ", ".join(differing[:6]) + (", ..." if len(differing) > 6 else "")
