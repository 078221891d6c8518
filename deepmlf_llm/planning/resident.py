"""Resident memory of a process that trains on a CPU: what Linux counts, beyond the bytes of tensors.

Three things lie above the tensors. The process itself: interpreter, libraries, their scratch memory; constants of the
machine, measured (:mod:`~deepmlf_llm.planning.cpu_rates`). The files of the base: safetensors are mapped into memory,
so their pages count as soon as they are read, beside the copy in another dtype, or in its place where there is none.
And what glibc's ``malloc`` has been given back and keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.planning.memory import Range

_BESIDE_STEP = (0.1, 0.45, 1.0)  # of a step's tensors: what malloc keeps beside those that are alive
_SCATTERED = 100 << 20  # bytes more at worst: blocks that come and go, as where a layer is computed again
_BESIDE_DROPPED = (0.1, 0.2, 0.4)  # of layers that were loaded and are cut off
_BESIDE_PACKING = (0.1, 0.5, 1.2)  # of the weights in full that were packed, one after another, by several threads
_KINDS = ("low", "expected", "high")
_LOADER = 20 << 20  # bytes that reading any base leaves


@dataclass(frozen=True)
class Resident:
    """Bytes of this process: now, and the most so far (since ``/proc/self/clear_refs`` was written)."""

    now: int
    peak: int


def resident_bytes() -> Resident:
    """From ``/proc/self/status`` (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return Resident(now, peak)


@dataclass(frozen=True)
class Loading:
    """Of a base, bytes.

    Args:
        files: its safetensors; 0: its weights are drawn.
        whole: all its weights, in the dtype that it is loaded in.
        kept: of them, those of the layers that stay.
        mapped: weights have the files' dtype and stay in them.
        packed: layers are quantized on the way.
    """

    files: int
    whole: int
    kept: int
    mapped: bool = False
    packed: bool = False

    @property
    def peak(self) -> Range:
        """While it is read, beside the process; packed weights are a small part of that."""
        if self.mapped:
            return Range.exactly(self.files)
        low = 0.5 if self.packed else 1.0
        return Range(self.files + low * self.whole, self.files + self.whole, self.files + 1.25 * self.whole)

    @property
    def leaves(self) -> Range:
        """Beside its weights, once it is read: pages of files, and freed memory that stays."""
        if self.mapped:
            return Range.exactly(max(0, self.files - self.kept) + _LOADER)
        low, likely, high = _BESIDE_PACKING if self.packed else _BESIDE_DROPPED
        dropped = self.whole if self.packed else self.whole - self.kept
        return Range(low * dropped + _LOADER, likely * dropped + _LOADER, high * dropped + _LOADER)


def loading_of(
    whole: Any, kept: Any, dtype: torch.dtype, directory: Path | None, drawn: bool = False, packed: bool = False
) -> Loading:
    """What a base takes as it is loaded.

    Args:
        whole, kept: decoders without weights: with all layers, and with those that stay.
        dtype: that it is loaded in.
        directory: of its safetensors; None: not here yet, so taken to be bf16, as they are published.
        drawn: there are no files: its weights are random, drawn in 32 bits.
        packed: layers are quantized on the way.
    """
    elements, stay = (sum(p.numel() for p in lm.parameters()) for lm in (whole, kept))
    if drawn:  # a head that is tied to the embeddings is made before it is tied
        head = whole.get_output_embeddings().weight.numel() if whole.config.tie_word_embeddings else 0
        return Loading(0, 4 * (elements + head), dtype.itemsize * stay)
    files = sorted(directory.glob("*.safetensors")) if directory is not None else []
    size = sum(file.stat().st_size for file in files) if files else 2 * elements
    stored = _stored(files[0]) if files else torch.bfloat16
    mapped = stored == dtype and not packed
    return Loading(size, dtype.itemsize * elements, dtype.itemsize * stay, mapped, packed)


def _stored(file: Path) -> torch.dtype:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(next(iter(opened.keys())))
        return tensor.dtype


@dataclass(frozen=True)
class Host:
    """A process on a CPU, beside its tensors.

    Args:
        imported, process: bytes of one that has imported what a run does, and of one that has computed as well.
        loading: of the base, by its quantization.
    """

    imported: float
    process: float
    loading: Callable[[str], Loading]

    def rows(self, tensors: Mapping[str, Range], quantization: str) -> dict[str, Range]:
        """What takes memory in the process -> how much, and "total": the most of loading and stepping.

        Args:
            tensors: by :func:`~deepmlf_llm.planning.memory.memory_rows`.
            quantization: of the base.
        """
        step, loading = tensors["step"], self.loading(quantization)
        shares = [getattr(step, k) * share for k, share in zip(_KINDS, _BESIDE_STEP, strict=True)]
        shares[-1] += _SCATTERED
        found = {name: part for name, part in tensors.items() if name != "total"}
        found |= {"process": Range.exactly(self.process), "loading leaves": loading.leaves}
        found["malloc keeps"] = Range(*shares)
        stepping = sum(found.values(), Range.exactly(0))
        reading = loading.peak + Range.exactly(self.imported)
        most = Range(*(max(getattr(stepping, k), getattr(reading, k)) for k in _KINDS))
        return {**found, "while loading": reading, "total": most}
