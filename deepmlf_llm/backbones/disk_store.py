"""Text streams on disk, as memory-mapped shards that a killed run goes on from.

Any number of threads may use a store, and a child process that was forked may go on with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from deepmlf_llm.backbones.text_store import STORAGE, Entry, Text
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.files import write_aside, writing
from deepmlf_llm.locks import Lock

FORMAT = 2  # 2: with a checksum of each entry
_DTYPES = frozenset((*STORAGE, "float64"))


class _Place(NamedTuple):
    """Where an entry lies.

    Attributes:
        shard: name of its file, without the suffix.
        offset: of its first byte.
        shapes: (dtype, shape) of its tensors, one after the other.
        checksum: CRC-32 over the folder's name, what the index says of it, and its bytes.
    """

    shard: str
    offset: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    checksum: int

    @property
    def size(self) -> int:
        return sum(_nbytes(dtype, shape) for dtype, shape in self.shapes)


class DiskStore:
    """Entries in shards under ``directory / <hash of key>``, read through memory maps.

    A process writes its own shards only: data first, flushed, then one index line an entry. So what an index names is
    there whole, whatever instant a run was killed at, and several processes can fill one store. Each entry carries a
    checksum, looked at when a process first reads it: what is damaged is as if it were not there.

    Args:
        directory: holds one folder per key.
        key: whatever changes the streams (base, dtype, quantization, depth, storage); written to ``key.json``.
        shard_bytes: a shard is closed past this size.

    Raises:
        ConfigError: the folder was written in another format.
        FileError: the folder cannot be written.
    """

    kind = "disk"

    def __init__(self, directory: str | Path, key: dict[str, Any], shard_bytes: int = 1 << 30) -> None:
        key = {"format": FORMAT, **key}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.directory = Path(directory) / name
        self.shard_bytes = shard_bytes
        self._index: dict[Text, tuple[_Place, ...]] = {}
        self._read: dict[str, int] = {}
        self._begin()
        described = self.directory / "key.json"
        with writing(described):
            self.directory.mkdir(parents=True, exist_ok=True)
        found = _json_of(described)
        if found is None:  # not there yet, or damaged: entries carry the key in their checksums
            write_aside(described, json.dumps(key, indent=2, sort_keys=True), shared=True)
        elif found != key:
            raise ConfigError(f"text cache {described}: another key under the same hash; delete that folder")
        self.refresh()

    def _begin(self) -> None:
        """What belongs to one object in one process: two must not write one shard."""
        self._lock = Lock()
        self._maps: dict[str, np.memmap] = {}
        self._sound: set[_Place] = set()
        self._shard: str | None = None
        self._writer = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_maps", "_sound", "_shard", "_writer")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "_index": dict(state["_index"]), "_read": dict(state["_read"])})
        self._begin()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, text: Text) -> bool:
        return not self.missing({text})

    def missing(self, texts: set[Text]) -> set[Text]:
        """Looks into the directory at most once, and not where all of them are known."""
        if any(text not in self._index for text in texts):
            self.refresh()
        return {text for text in texts if text not in self._index}

    def refresh(self) -> None:
        """Learns what other processes (or an earlier run) have written."""
        with self._lock:
            for path in sorted(self.directory.glob("*.index")):
                for line in _whole_lines(_bytes_after(path, self._read.get(path.name, 0))):
                    self._note(path.stem, line)
                    self._read[path.name] = self._read.get(path.name, 0) + len(line)

    def _note(self, shard: str, line: bytes) -> None:
        """One line of an index; one that is none (torn by a full disk and then written on, or damaged) is left out."""
        read = _parse(shard, line)
        if read is not None and read[1] not in self._index.get(read[0], ()):
            self._index[read[0]] = (*self._index.get(read[0], ()), read[1])

    def found(self, texts: Iterable[Text]) -> dict[Text, Entry]:
        """Those of ``texts`` that are kept, and sound."""
        texts = set(texts)
        self.missing(texts)
        looked_up = {text: self._entry(text) for text in texts}
        return {text: entry for text, entry in looked_up.items() if entry is not None}

    def _entry(self, text: Text) -> Entry | None:
        """The newest sound one; damaged ones are forgotten."""
        for place in reversed(self._index.get(text, ())):
            raw = self._bytes(place)
            if raw is not None and (place in self._sound or self._checksum(text, place, raw) == place.checksum):
                self._sound.add(place)
                return _unfolded(raw, place)
            with self._lock:
                left = tuple(other for other in self._index.get(text, ()) if other != place)
                if left:
                    self._index[text] = left
                else:
                    self._index.pop(text, None)
        return None

    def _bytes(self, place: _Place) -> np.ndarray | None:
        """The memory-mapped bytes of an entry; None where its file is missing or too short."""
        data, end = self._maps.get(place.shard), place.offset + place.size
        if data is None or len(data) < end:  # the shard has grown since it was mapped
            try:
                # Mode c: torch wants writable memory; nothing is ever written back.
                data = np.memmap(self.directory / f"{place.shard}.data", mode="c", dtype=np.uint8)
            except (OSError, ValueError):  # missing, or empty
                return None
            self._maps[place.shard] = data
        return data[place.offset : end] if len(data) >= end else None

    def _checksum(self, text: Text, place: _Place, raw: Any) -> int:
        head = json.dumps([self.directory.name, text, place.offset, place.shapes])
        return zlib.crc32(raw, zlib.crc32(head.encode()))

    def __getitem__(self, text: Text) -> Entry:
        return self.found([text])[text]

    def put(self, entries: Sequence[tuple[Text, Entry]]) -> None:
        """Keeps these entries, and waits until they are on the disk.

        Raises:
            FileError: they cannot be written.
        """
        with self._lock:
            if self._writer != os.getpid():  # a fork: the shard stays its parent's
                self._writer, self._shard = os.getpid(), None
            if self._shard is None or _size(self.directory / f"{self._shard}.data") > self.shard_bytes:
                self._shard = uuid.uuid4().hex[:12]
            data, index = self.directory / f"{self._shard}.data", self.directory / f"{self._shard}.index"
            with writing(data, sum(entry.nbytes for _, entry in entries)):
                lines = self._write(data, self._shard, entries)
                with index.open("a") as file:
                    file.writelines(lines)
        self.refresh()

    def _write(self, data: Path, shard: str, entries: Sequence[tuple[Text, Entry]]) -> list[str]:
        """Their bytes; returns their index lines."""
        lines = []
        with data.open("ab") as file:
            for text, entry in entries:
                tensors = entry.tensors()
                raw = b"".join(t.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)
                shapes = tuple((str(t.dtype).removeprefix("torch."), tuple(t.shape)) for t in tensors)
                place = _Place(shard, file.tell(), shapes, 0)
                lines.append(json.dumps([text, place.offset, shapes, self._checksum(text, place, raw)]) + "\n")
                file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        return lines

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.glob("*.data"))

    @property
    def where(self) -> str:
        return f"in {self.directory}"

    def free_bytes(self) -> int:
        """What its file system could still hold."""
        return shutil.disk_usage(self.directory).free


def _nbytes(dtype: str, shape: Sequence[int]) -> int:
    kind: torch.dtype = getattr(torch, dtype)
    return math.prod(shape) * kind.itemsize


def _bytes_after(path: Path, offset: int) -> bytes:
    """Nothing where the file is another user's, or was deleted meanwhile: what it names is computed again."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except OSError:
        return b""


def _size(path: Path) -> int:
    """Of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _unfolded(raw: np.ndarray, place: _Place) -> Entry:
    tensors, offset = [], 0
    for dtype, shape in place.shapes:
        size = _nbytes(dtype, shape)
        tensors.append(torch.from_numpy(raw[offset : offset + size]).view(getattr(torch, dtype)).reshape(shape))
        offset += size
    return Entry(tensors[0], tensors[1] if len(tensors) == 3 else None, tensors[-1])


def _parse(shard: str, line: bytes) -> tuple[Text, _Place] | None:
    """Text and place that an index line names; None where it is none."""
    try:
        tokens, offset, shapes, checksum = json.loads(line)
        places = tuple((str(dtype), tuple(int(length) for length in shape)) for dtype, shape in shapes)
        text, place = tuple(int(token) for token in tokens), _Place(shard, int(offset), places, int(checksum))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    known = all(dtype in _DTYPES and all(length >= 0 for length in shape) for dtype, shape in places)
    return (text, place) if known and place.offset >= 0 and len(places) in (2, 3) else None


def _json_of(path: Path) -> Any:
    """What a JSON file holds; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _whole_lines(raw: bytes) -> Iterator[bytes]:
    """Lines that were written to their end; the torn one of a killed run is left out."""
    for line in raw.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line
