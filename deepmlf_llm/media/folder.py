"""A folder of clips -> features with their recipe, one file a clip: a kill costs one clip, the same command goes on."""

from __future__ import annotations

import io
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from deepmlf_llm.data.clip_folder import CLIPS, KIND, RECIPE, SCHEMA, clip_file, read_recipe
from deepmlf_llm.data.facts import feature_problems
from deepmlf_llm.data.npy_folder import TABLE
from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.extras import require
from deepmlf_llm.file_locks import held
from deepmlf_llm.files import make_directory, sha256, write_aside
from deepmlf_llm.media.extract import ClipRecord, Extractor
from deepmlf_llm.media.listing import Clip, list_clips, write_table
from deepmlf_llm.media.recipe import fingerprint
from deepmlf_llm.media.status import GOOD, UNREADABLE, ClipError

REPORT = "extract_report.json"
MISSING, ALWAYS, NEVER = "missing", "always", "never"
TRANSCRIBE = (MISSING, ALWAYS, NEVER)
SOME_FAILED = 3


@dataclass
class ExtractionReport:
    """What became of the clips of a folder.

    Attributes:
        clips: name -> status, and message, duration, text_source, seconds where there are any.
        found: clips that an earlier run had made.
        took: s, of this run, models loaded.
        cpu: CPU seconds of the same, of all threads: what a busy machine does not blur.
        notes: what was odd, one sentence each.
    """

    clips: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: int = 0
    took: float = 0.0
    cpu: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Names of the clips that gave no features."""
        return [name for name, told in self.clips.items() if told["status"] not in GOOD]

    @property
    def exit_code(self) -> int:
        """0: all clips gave features; 3: some did not; 2: none did."""
        return 0 if not self.failed else SOME_FAILED if len(self.failed) < len(self.clips) else 2

    def counts(self) -> dict[str, int]:
        """Status -> clips."""
        return dict(Counter(told["status"] for told in self.clips.values()))

    def speed(self) -> dict[str, float]:
        """Seconds of clips for each second of work, by stage and "all", over the clips of this run."""
        fresh = [told for told in self.clips.values() if told.get("seconds")]
        length = sum(told["duration"] for told in fresh)
        stages: Counter[str] = Counter()
        for told in fresh:
            stages.update(told["seconds"])
        rates = {stage: length / spent for stage, spent in stages.items() if spent > 0}
        spent = sum(stages.values())
        return {**rates, "all": length / spent} if spent else {}

    def to_dict(self) -> dict[str, Any]:
        speed = {stage: round(rate, 2) for stage, rate in self.speed().items()}
        return {
            "counts": self.counts(),
            "found": self.found,
            "took_seconds": round(self.took, 1),
            "cpu_seconds": round(self.cpu, 1),
            "times_real_time": speed,
            "notes": self.notes,
            "clips": self.clips,
        }


def extract_folder(
    extractor: Extractor,
    directory: Path,
    out: Path,
    transcribe: str = MISSING,
    stop_at_failure: bool = False,
    limit: int | None = None,
    progress: bool | None = None,
) -> ExtractionReport:
    """Makes the features of every clip of a folder; those that are there already are kept.

    Args:
        extractor: how; its transcriber is used as ``transcribe`` says.
        directory: what :func:`~deepmlf_llm.media.listing.list_clips` reads.
        out: where the features go: what :mod:`deepmlf_llm.data.clip_folder` reads.
        transcribe: "missing": clips without a text are listened to; "always": the others too, for the times of their
            words (a text that is given stays); "never".
        stop_at_failure: raise for the first clip that gives no features.
        limit: of clips, the first so many.
        progress: show a bar; default: on a terminal.

    Returns:
        What became of each; also in ``out/extract_report.json``.

    Raises:
        ConfigError: a limit below 1.
        DataError: a wrong folder, or ``out`` has features of another recipe or something else in it.
        ClipError: with ``stop_at_failure``.
    """
    start, worked = time.perf_counter(), time.process_time()
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: expected a number of clips, 1 at least")
    listing = list_clips(directory)
    report = ExtractionReport(notes=list(listing.notes))
    if limit is not None and limit < len(listing.clips):
        report.notes.append(f"limit: {TABLE} has the first {limit} of {len(listing.clips)} clips and no others")
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    make_directory(out)
    with held(out / RECIPE, "extracts features there"):
        _begin(out, extractor)
        make_directory(out / CLIPS)
        good: list[tuple[Clip, str]] = []
        try:
            for clip in tqdm(listing.clips[:limit], unit="clips", disable=hidden):
                text = _noted(_one(extractor, clip, out, transcribe, report), clip, report, stop_at_failure)
                good += [] if text is None else [(clip, text)]
        finally:
            report.took, report.cpu = time.perf_counter() - start, time.process_time() - worked
            write_aside(out / REPORT, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")
        if good:
            write_aside(out / TABLE, write_table(good, listing.columns))
    return report


def _noted(found: dict[str, Any], clip: Clip, report: ExtractionReport, stop_at_failure: bool) -> str | None:
    """Notes what became of a clip; its text, or None where it gave no features.

    Raises:
        ClipError: with ``stop_at_failure``, it gave none.
    """
    text: str = found.pop("text", "")
    report.clips[clip.name] = found
    if found["status"] in GOOD:
        return text
    if stop_at_failure:
        raise ClipError(found["status"], found["message"])
    tqdm.write(f"{clip.name}: {found['status']}: {found['message']}", file=sys.stderr)
    return None


def _begin(out: Path, extractor: Extractor) -> None:
    """Writes the recipe, or compares it with the one that is there."""
    facts = extractor.facts()
    if (out / RECIPE).is_file():
        before = read_recipe(out)
        problems = feature_problems(before, facts) + [f"{name!r} is new" for name in facts if name not in before]
        if not problems:
            return
        if any((out / CLIPS).glob("*.npz")):
            raise DataError(f"{out}: holds features of another recipe: {'; '.join(problems)}; give another directory")
    elif others := [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]:
        raise DataError(f"{out}: holds something else already ({others[0]}); give a new directory")
    content = {"kind": KIND, "schema": SCHEMA, "fingerprint": fingerprint(facts), "modalities": facts}
    write_aside(out / RECIPE, json.dumps(content, indent=1) + "\n")


def _one(extractor: Extractor, clip: Clip, out: Path, transcribe: str, report: ExtractionReport) -> dict[str, Any]:
    """What became of a clip, with its text where it is good."""
    place = clip_file(out, clip.video, clip.clip)
    listens = extractor.transcriber is not None and (
        transcribe == ALWAYS or (transcribe == MISSING and not clip.text.strip())
    )
    try:
        identity = {
            "file_sha256": sha256(clip.path) if clip.path.is_file() else "",
            "given_text": clip.text,
            "transcriber": extractor.transcriber.facts if listens and extractor.transcriber else None,
        }
        if (kept := _kept(place, identity)) is not None:
            report.found += 1
            return {key: kept[key] for key in ("status", "duration", "text_source", "text")}
        record = extractor.extract(clip.path, clip.text, listen=listens)
    except ClipError as error:
        return {"status": error.status, "message": str(error)}
    except (OSError, require("av", "reading clips").error.FFmpegError) as error:
        return {"status": UNREADABLE, "message": f"{clip.path}: cannot be read ({' '.join(str(error).split())})"}
    write_aside(place, _packed(record, identity))
    told = {"status": record.status, "duration": record.duration, "text_source": record.text_source}
    return {**told, "seconds": record.seconds, "text": record.text}


def _packed(record: ClipRecord, identity: dict[str, Any]) -> bytes:
    told = {**json.loads(record.to_json()), "identity": identity}
    arrays: dict[str, Any] = dict(record.features)
    if record.face_found is not None:
        arrays["face_found"] = record.face_found
    note = np.frombuffer(json.dumps(told, ensure_ascii=False).encode("utf-8"), dtype=np.uint8)
    out = io.BytesIO()
    np.savez(out, record=note, **arrays)
    return out.getvalue()


def _kept(place: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier run, if it is of the same file and text and is whole."""
    if not place.is_file():
        return None
    try:
        with np.load(place, allow_pickle=False) as archive:
            told = json.loads(archive["record"].tobytes())
    except Exception:  # whatever is wrong with it, it is made again
        return None
    return told if told.get("identity") == identity else None
