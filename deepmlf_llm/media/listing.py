"""The clips of a folder: those of its ``label.csv``, or all files of sound and video in it."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from deepmlf_llm.data.label_table import read_label_table
from deepmlf_llm.data.npy_folder import TABLE
from deepmlf_llm.errors import DataError

_ENDINGS = (
    "mp4 m4v mov mkv webm avi mpg mpeg ts 3gp flv wmv ogv",
    "wav mp3 m4a aac flac ogg opus wma",
)
SUFFIXES = frozenset(f".{ending}" for line in _ENDINGS for ending in line.split())
_RAW = ("Raw", "raw", "")


@dataclass(frozen=True)
class Clip:
    """A row of the table and its file.

    Attributes:
        video, clip: its ids.
        path: of the file; where there is none, the place at which it was looked for.
        row: column -> cell.
    """

    video: str
    clip: str
    path: Path
    row: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.video}$_${self.clip}"

    @property
    def text(self) -> str:
        return self.row.get("text", "")


@dataclass
class Listing:
    """The clips of a folder, in order; ``columns`` of its table; ``notes`` that the user should know."""

    clips: list[Clip]
    columns: list[str]
    notes: list[str] = field(default_factory=list)


def list_clips(directory: Path) -> Listing:
    """Reads the table of a folder and finds the file of each row.

    ``label.csv`` has the columns video_id, clip_id, text, and label, mode and more where there are any; the files are
    ``Raw/<video_id>/<clip_id>.*`` as MMSA has them, or without ``Raw``, or ``<video_id>$_$<clip_id>.*``. Without a
    table each file is a clip, without words.

    Raises:
        DataError: no such folder, a wrong table, no clips, or two files for one row.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder")
    files = sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in path.relative_to(directory).parts)
    )
    table = directory / TABLE
    if not table.is_file():
        clips = [_without_table(directory, path) for path in files]
        if not clips:
            raise DataError(f"{directory}: holds neither {TABLE} nor files of sound or video")
        _check_twice(clips, directory)
        return Listing(clips, ["video_id", "clip_id", "text"], [f"no {TABLE}: every file is a clip without labels"])
    read = read_label_table(table.read_bytes(), table, labelled=False, numeric=False)
    by_stem: dict[str, list[Path]] = {}
    for path in files:
        by_stem.setdefault(path.relative_to(directory).with_suffix("").as_posix(), []).append(path)
    clips = [_find(directory, row, by_stem) for row in read.rows]
    _check_twice(clips, directory)
    notes = [note for note in read.notes if note]
    used = {clip.path for clip in clips}
    if orphans := [path for path in files if path not in used]:
        notes.append(f"{len(orphans)} files belong to no row (such as {orphans[0].relative_to(directory)})")
    return Listing(clips, list(read.rows[0]), notes)


def write_table(clips: list[tuple[Clip, str]], columns: list[str]) -> str:
    """A ``label.csv`` of clips and their texts; all other cells as they were."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for clip, text in clips:
        writer.writerow({**clip.row, "text": text})
    return out.getvalue()


def _find(directory: Path, row: dict[str, str], by_stem: dict[str, list[Path]]) -> Clip:
    video, clip = row["video_id"], row["clip_id"]
    names = (f"{video}/{clip}", f"{video}$_${clip}", f"{video}_{clip}")
    keys = [f"{raw}/{name}" if raw else name for raw in _RAW for name in names]
    there = [path for key in keys for path in by_stem.get(key, ())]
    if len(there) > 1:
        shown = ", ".join(str(path.relative_to(directory)) for path in there)
        raise DataError(f"{directory}: clip {clip!r} of video {video!r} has several files: {shown}; keep one")
    return Clip(video, clip, there[0] if there else directory / "Raw" / video / f"{clip}.*", row)


def _without_table(directory: Path, path: Path) -> Clip:
    parent = path.parent.relative_to(directory).as_posix()
    video, clip = "clips" if parent == "." else parent.strip(), path.stem.strip()  # as a table's cells are read
    return Clip(video, clip, path, {"video_id": video, "clip_id": clip, "text": ""})


def _check_twice(clips: list[Clip], directory: Path) -> None:
    seen: dict[str, Path] = {}
    rows: dict[Path, str] = {}
    for clip in clips:
        if clip.name in seen:
            raise DataError(f"{directory}: both {seen[clip.name].name} and {clip.path.name} are there; keep one")
        if clip.path in rows:
            one, other = rows[clip.path], f"{clip.clip!r} of video {clip.video!r}"
            raise DataError(f"{directory}: {clip.path.name} would be clip {one} and clip {other}; name it otherwise")
        seen[clip.name] = clip.path
        rows[clip.path] = f"{clip.clip!r} of video {clip.video!r}"
