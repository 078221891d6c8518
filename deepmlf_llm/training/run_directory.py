"""The directory of one run: who may write there, where it was cut, and its files, each complete or absent.

``config.yaml`` (every setting; reads with ``--config``), ``run.json`` (what the settings met: data, processes),
``metrics.jsonl``, ``checkpoint-<step>/``, ``adapter/``, ``result.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deepmlf_llm.errors import RunError
from deepmlf_llm.files import forget, make_directory, replace_directory, write_aside
from deepmlf_llm.paths import shown
from deepmlf_llm.reading import read_json, read_yaml
from deepmlf_llm.training import checkpoints
from deepmlf_llm.training.metrics_log import METRICS_FILE, finite
from deepmlf_llm.training.run_identity import Difference, differences, in_words
from deepmlf_llm.training.trusted import check_owner

ORDER = 2
"""How a run's utterances are ordered and its random numbers drawn: by step. 1: by batch, as the first runs did."""
CONFIG, FACTS, RESULT, ADAPTER, LOCK = "config.yaml", "run.json", "result.json", "adapter", ".lock"
_STARTS = ("init_from", "av_encoder_from")  # facts that are digests, None where the file is gone
_BEFORE_THE_CLAIM = {LOCK, "libraries.log"}
_BEFORE_THE_FIRST_STEP = {CONFIG, FACTS, METRICS_FILE, "tensorboard"} | _BEFORE_THE_CLAIM
_LEFT_BY_KILLS = re.compile(r"\.checkpoint-\d+-.*|\.{1,2}(adapter|av_encoder)\.(partial|old).*|\..+\.partial")


class RunDirectory:
    """A run's files at ``path``. It is the run's own from the end of its first step on.

    Args:
        path: need not exist.
        settings: the run's, as ``RunSettings.to_dict()``.
        fingerprint: of all that decides what is computed; the same for a run and its continuation.
        facts: what the settings met, for ``run.json``: see :func:`~deepmlf_llm.training.run_identity.differences`.
        product: name of the folder of what is trained.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        fingerprint: str,
        facts: Mapping[str, Any] | None = None,
        product: str = ADAPTER,
    ) -> None:
        self.path = path
        self.settings = dict(settings)
        self.fingerprint = fingerprint
        self.facts = dict(facts or {})
        self.product = product
        self.changed: list[Difference] = []
        """In what the run goes on otherwise than it was begun; found by :meth:`check`."""
        self.worlds: list[dict[str, Any]] = []
        self._begun = False
        self._order = ORDER

    @property
    def adapter(self) -> Path:
        return self.path / self.product

    def check(self) -> None:
        """Refuses a place that is not this run's; writes nothing.

        Raises:
            RunError: the directory holds something else, or another run (the message names what differs and may not).
        """
        if not self.path.exists():
            return
        name = shown(self.path)
        if not self.path.is_dir():
            raise RunError(f"output_dir={name}: is a file")
        stored = self._stored_facts()
        if stored is None or not stored.get("begun", True):
            known = _BEFORE_THE_CLAIM if stored is None else _BEFORE_THE_FIRST_STEP
            others = sorted(e.name for e in self.path.iterdir() if e.name not in known)
            if strange := [other for other in others if not _LEFT_BY_KILLS.fullmatch(other)]:
                raise RunError(f"output_dir={name}: holds something that is not a run ({strange[0]}); choose another")
            return
        starts = [{facts.get(start) for facts in (stored, self.facts)} - {None} for start in _STARTS]
        if stored["fingerprint"] == self.fingerprint and max(map(len, starts)) < 2:
            return
        found = self._differences(stored)
        refused = [difference for difference in found or [] if not difference.is_of_the_world]
        if not found or refused:
            words = f"its {CONFIG} cannot be read" if found is None else in_words(refused)
            words = words or "of another version: nothing of it differs that is named in its files"
            raise RunError(f"output_dir={name}: holds another run ({words}); choose another directory")
        if self.order != ORDER:
            raise RunError(
                f"output_dir={name}: its run was begun by an earlier version and goes on only as it was begun "
                f"({in_words(found)})"
            )
        self.changed = found

    @property
    def order(self) -> int:
        """:data:`ORDER`, or that of the run that is here."""
        stored = self._stored_facts()
        return ORDER if stored is None or not stored.get("begun", True) else int(stored.get("order", 1))

    def holds_this_run(self) -> bool:
        """Whether this very run was begun here before."""
        try:
            stored = self._stored_facts()
        except RunError:
            return False
        return stored is not None and stored["fingerprint"] == self.fingerprint

    def fact(self, name: str) -> Any:
        """What this run noted when it was begun here; None where it noted nothing of that name."""
        return (self._stored_facts() or {}).get(name)

    def _stored_facts(self) -> dict[str, Any] | None:
        """``run.json``; None where there is none.

        Raises:
            RunError: it is damaged.
        """
        path = self.path / FACTS
        if not path.is_file():
            return None
        try:
            facts = read_json(path)
            facts["fingerprint"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"output_dir={shown(self.path)}: its {FACTS} is damaged; choose another directory") from None
        found: dict[str, Any] = facts
        return found

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
    def claimed(self, main: bool) -> Iterator[None]:
        """Takes the directory for this process' run, and frees it at the end, or when the process is killed.

        What kills have left is removed first: whoever holds the lock is the only one who writes here. A run that fails
        before its first step leaves nothing.

        Raises:
            RunError: another process is at work there.
            FileError: the directory cannot be made.
        """
        if not main:
            yield
            return
        from filelock import FileLock, Timeout

        was_there = self.path.exists()
        make_directory(self.path)
        lock = FileLock(str(self.path / LOCK), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(f"output_dir={shown(self.path)}: another process is training there") from None
        is_new = False  # until it is known that no run was begun here, nothing that lies here may go
        try:
            self.check()
            for entry in self.path.iterdir():
                if _LEFT_BY_KILLS.fullmatch(entry.name):
                    forget(entry)
            self.recall()
            is_new = not self._begun
            if is_new:
                self._write_facts()
            yield
        except BaseException:
            if is_new and not self._begun:
                self._withdraw(was_there)
            raise
        finally:
            lock.release()

    def recall(self) -> None:
        """Reads what the run that is here has noted of itself."""
        stored = self._stored_facts()
        self._begun = stored is not None and stored.get("begun", True)
        self.worlds = stored.get("worlds", []) if stored is not None and self._begun else []
        self._order = self.order

    def begin(self) -> None:
        """After the first step: from now on the directory is this run's. The process that claimed it calls this."""
        if not self._begun:
            self._begun = True
            self._write_facts()

    def enter_world(self, step: int, **world: Any) -> None:
        """Notes in what world the run trains from ``step`` on, where that is another one than before."""
        known = [known for known in self.worlds if known["from_step"] < step]
        if not known or {**known[-1], "from_step": step} != {"from_step": step, **world}:
            known.append({"from_step": step, **world})
        if known != self.worlds or self.changed:
            before = self._stored_facts() or {}
            self.facts |= {start: before[start] for start in _STARTS if before.get(start) and not self.facts.get(start)}
            self.worlds = known
            self._write_facts()

    def _withdraw(self, was_there: bool) -> None:
        """Takes back what a run wrote before its first step."""
        for name in (*sorted(_BEFORE_THE_FIRST_STEP - {FACTS, LOCK}), FACTS, LOCK):  # while facts are there, it is ours
            forget(self.path / name)
        if not was_there and not any(self.path.iterdir()):
            self.path.rmdir()

    def resume_from(self, trusted: bool = False) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, and a sentence for each that was skipped. One that was cut is removed.

        Args:
            trusted: go on from files that others could have written.

        Raises:
            RunError: they could have, and ``trusted`` is not set.
        """
        newest, skipped = checkpoints.newest_whole(self.path)
        if newest is not None and not trusted:
            best = checkpoints.best_of(newest)
            check_owner(self.path, [newest, *([] if best is None else [best])])
        for path in skipped:
            if not (path / checkpoints.MANIFEST).exists():
                checkpoints.remove(path)
        return newest, [f"skipped {path.name}: {reason}" for path, reason in skipped.items()]

    def write_result(self, result: Mapping[str, Any]) -> None:
        """``result.json``; it appears complete, and last of all."""
        text = json.dumps(finite(dict(result)), indent=2, ensure_ascii=False, allow_nan=False, default=str)
        write_aside(self.path / RESULT, text + "\n")

    @property
    def adapter_aside(self) -> Path:
        """Where the adapter is written before it gets its name."""
        return self.path / f".{self.product}.partial"

    def publish_adapter(self) -> None:
        """Renames the adapter written aside to its place."""
        replace_directory(self.adapter_aside, self.adapter)

    def _write_facts(self) -> None:
        record = {"schema": 1, "begun": self._begun, "fingerprint": self.fingerprint, "order": self._order}
        record |= {**self.facts, "worlds": self.worlds}
        write_aside(self.path / FACTS, json.dumps(record, indent=1) + "\n")  # first: it says whose the rest is
        text = yaml.safe_dump({k: v for k, v in self.settings.items() if v is not None}, sort_keys=False)
        write_aside(self.path / CONFIG, text)

    def _differences(self, stored_facts: Mapping[str, Any]) -> list[Difference] | None:
        """In what the run that is here differs, with both values; None where its settings cannot be read."""
        try:
            stored = read_yaml(self.path / CONFIG) or {}
        except (OSError, ValueError):
            return None
        if not isinstance(stored, dict):
            return None
        return differences(stored, self.settings, stored_facts, self.facts)
