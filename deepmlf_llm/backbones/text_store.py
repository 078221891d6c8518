"""Where text streams are kept: in host memory, or on disk as memory-mapped shards that a killed run goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from deepmlf_llm.errors import ConfigError

STORAGE = ("float32", "bfloat16", "float16", "int8")
FORMAT = 1


@dataclass
class Entry:
    """One text: notation as in :class:`~deepmlf_llm.backbones.stream.TextStream`.

    Args:
        keys_values: [layers x 2 x h x l x e], in the storage dtype.
        scales: of int8 storage, per layer, head and token [layers x 2 x h x l] (fp32); else None.
        states: [l x d], or the last token's [1 x d].
    """

    keys_values: Tensor
    scales: Tensor | None
    states: Tensor

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.keys_values, self.scales, self.states) if t is not None]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors())


def pack(keys_values: Tensor, states: Tensor, storage: str | None) -> Entry:
    """Keys and values in their storage dtype, in host memory; int8 rounds symmetrically, one scale per layer, head and
    token."""
    states = states.to("cpu", copy=True)
    if storage != "int8":
        dtype = keys_values.dtype if storage is None else getattr(torch, storage)
        return Entry(keys_values.to("cpu", dtype, copy=True), None, states)
    scales = keys_values.float().abs().amax(dim=-1).clamp(min=1e-12) / 127
    return Entry((keys_values.float() / scales[..., None]).round().to("cpu", torch.int8), scales.cpu(), states)


def unpacked(entry: Entry) -> Tensor:
    """Keys and values as they go into the batch (a cast, if any, happens in the copy)."""
    return entry.keys_values if entry.scales is None else entry.keys_values * entry.scales[..., None]


class MemoryStore:
    """Entries in a dictionary, in host memory: an accelerator's is for the model."""

    where = "in memory"

    def __init__(self) -> None:
        self._entries: dict[tuple[int, ...], Entry] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, text: tuple[int, ...]) -> bool:
        return text in self._entries

    def missing(self, texts: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
        return texts - self._entries.keys()

    def __getitem__(self, text: tuple[int, ...]) -> Entry:
        return self._entries[text]

    def put(self, entries: Sequence[tuple[tuple[int, ...], Entry]]) -> None:
        for text, entry in entries:
            before = self._entries.get(text)
            self.nbytes += entry.nbytes - (0 if before is None else before.nbytes)
            self._entries[text] = entry

    def clear(self) -> None:
        self._entries.clear()
        self.nbytes = 0

    def free_bytes(self) -> int:
        """What this machine could still hold."""
        return int(psutil.virtual_memory().available)


class DiskStore:
    """Entries in shards under ``directory / <hash of key>``, read through memory maps.

    A process writes its own shards only: data first, flushed, then one index line an entry. So what an index names is
    there whole, whatever instant a run was killed at, and several processes can fill one store.

    Args:
        directory: holds one folder per key.
        key: whatever changes the streams (base, dtype, quantisation, depth, storage); written to ``key.json``.
        shard_bytes: a shard is closed past this size.

    Raises:
        ConfigError: the folder was written in another format.
    """

    def __init__(self, directory: str | Path, key: dict[str, Any], shard_bytes: int = 1 << 30) -> None:
        key = {"format": FORMAT, **key}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.directory = Path(directory) / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.shard_bytes = shard_bytes
        self._index: dict[tuple[int, ...], tuple[str, int, list[Any]]] = {}
        self._maps: dict[str, np.memmap] = {}
        self._read: dict[str, int] = {}
        self._shard: str | None = None
        self._writer = os.getpid()
        described = self.directory / "key.json"
        if not described.exists():
            aside = self.directory / f".key-{uuid.uuid4().hex}"
            aside.write_text(json.dumps(key, indent=2, sort_keys=True))
            os.replace(aside, described)
        elif json.loads(described.read_text()) != key:
            raise ConfigError(f"text cache {described}: another key under the same hash; delete that folder")
        self.refresh()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, text: tuple[int, ...]) -> bool:
        return not self.missing({text})

    def missing(self, texts: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
        """Looks into the directory at most once, and not where all of them are known."""
        if texts - self._index.keys():
            self.refresh()
        return texts - self._index.keys()

    def refresh(self) -> None:
        """Learns what other processes (or an earlier run) have written."""
        for path in sorted(self.directory.glob("*.index")):
            with path.open("rb") as file:
                file.seek(self._read.get(path.name, 0))
                for line in _whole_lines(file.read()):
                    self._read[path.name] = self._read.get(path.name, 0) + len(line)
                    try:
                        tokens, offset, shapes = json.loads(line)
                    except (ValueError, TypeError):  # torn by a full disk, then written on: that text is read again
                        continue
                    self._index[tuple(tokens)] = (path.stem, offset, shapes)

    def __getitem__(self, text: tuple[int, ...]) -> Entry:
        shard, offset, shapes = self._index[text]
        tensors = []
        for dtype, shape in shapes:
            tensor, offset = self._view(shard, offset, getattr(torch, dtype), shape)
            tensors.append(tensor)
        if len(tensors) == 2:
            return Entry(tensors[0], None, tensors[1])
        return Entry(tensors[0], tensors[1], tensors[2])

    def _view(self, shard: str, offset: int, dtype: torch.dtype, shape: list[int]) -> tuple[Tensor, int]:
        size = int(np.prod(shape)) * dtype.itemsize
        data = self._maps.get(shard)
        if data is None or len(data) < offset + size:  # the shard has grown since it was mapped
            # Mode c: torch wants writable memory; nothing is ever written back.
            data = self._maps[shard] = np.memmap(self.directory / f"{shard}.data", mode="c", dtype=np.uint8)
        return torch.from_numpy(data[offset : offset + size]).view(dtype).reshape(shape), offset + size

    def put(self, entries: Sequence[tuple[tuple[int, ...], Entry]]) -> None:
        if self._writer != os.getpid():  # a fork: the shard stays its parent's
            self._writer, self._shard = os.getpid(), None
        if self._shard is None or (self.directory / f"{self._shard}.data").stat().st_size > self.shard_bytes:
            self._shard = uuid.uuid4().hex[:12]
        data, index = self.directory / f"{self._shard}.data", self.directory / f"{self._shard}.index"
        lines = []
        with data.open("ab") as file:
            for text, entry in entries:
                shapes = [(str(t.dtype).removeprefix("torch."), list(t.shape)) for t in entry.tensors()]
                lines.append(json.dumps([list(text), file.tell(), shapes]) + "\n")
                for tensor in entry.tensors():
                    file.write(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        with index.open("a") as file:
            file.writelines(lines)
        self.refresh()

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.glob("*.data"))

    @property
    def where(self) -> str:
        return f"in {self.directory}"

    def free_bytes(self) -> int:
        """What its file system could still hold."""
        return shutil.disk_usage(self.directory).free


def _whole_lines(raw: bytes) -> Iterator[bytes]:
    """Lines that were written to their end; the torn one of a killed run is left out."""
    for line in raw.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line
