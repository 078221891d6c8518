"""Two ways to keep splits on disk.

``arrow``: one Arrow data set a split through ``datasets`` (``datasets.load_from_disk`` opens the directory as well).
``numpy``: plain ``.npy`` and JSON files, for machines where ``datasets`` and pyarrow are not installed.
Both give back the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.errors import DataError, MissingPackageError
from deepmlf_llm.extras import installed, missing
from deepmlf_llm.reading import read_json

if TYPE_CHECKING:
    import pyarrow

    from deepmlf_llm.data.dataset import PolarityDataset

ROWS_LIMIT = 4 << 30  # bytes of the ids and texts of one split
STORAGES = ("arrow", "numpy")
_UNIMODAL = "label_"


def write_splits(directory: Path, splits: Mapping[str, PolarityDataset], storage: str) -> None:
    """Writes every split into an existing directory.

    Raises:
        MissingPackageError: ``datasets`` is not installed, and Arrow was asked for.
    """
    if storage == "arrow":
        if not installed("datasets"):
            raise MissingPackageError(missing("datasets", "writing Arrow") + "; or choose the storage numpy")
        _write_arrow(directory, splits)
    else:
        for name, split in splits.items():
            _write_numpy(directory / name, split)


def read_split(directory: Path, name: str, modalities: Mapping[str, int], storage: str) -> PolarityDataset:
    """Loads one split into memory.

    Args:
        directory: the data directory.
        name: the split.
        modalities: names and dimensions to expect.
        storage: how it was written.

    Raises:
        DataError: files are missing or damaged, or do not hold what ``modalities`` says.
        MissingPackageError: ``datasets`` is not installed, and they are in Arrow.
    """
    path = directory / name
    if storage == "arrow" and not installed("datasets"):
        raise MissingPackageError(missing("datasets", f"{directory}: is in Arrow, which") + "; or use storage numpy")
    if not path.is_dir():
        raise DataError(f"{directory}: split {name!r} is missing; prepare the data again")
    read = _read_arrow if storage == "arrow" else _read_numpy
    try:
        split = read(path, list(modalities))
    except Exception as error:  # damaged files fail in any way
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); prepare the data again") from None
    if split.modalities != dict(modalities):
        raise DataError(f"{path}: holds {split.modalities}, but the manifest says {dict(modalities)}")
    return split


def _write_arrow(directory: Path, splits: Mapping[str, PolarityDataset]) -> None:
    import datasets

    arrow = {name: datasets.Dataset(datasets.table.InMemoryTable(_to_table(split))) for name, split in splits.items()}
    with _quiet(datasets):
        datasets.DatasetDict(arrow).save_to_disk(str(directory))


def _to_table(split: PolarityDataset) -> pyarrow.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {"id": pa.array(split.ids, pa.string()), "text": pa.array(split.texts, pa.string())}
    labels = pa.array(split.labels.reshape(-1), pa.float32())
    several = split.labels.ndim == 2
    columns["label"] = pa.FixedSizeListArray.from_arrays(labels, split.labels.shape[1]) if several else labels
    for suffix, values in split.unimodal.items():
        columns[_UNIMODAL + suffix] = pa.array(np.asarray(values, dtype=np.float32), pa.float32())
    for name, ragged in split.features.items():
        # [t][d] to whoever reads it, one flat buffer to us: nothing is copied in either direction.
        frames = pa.FixedSizeListArray.from_arrays(pa.array(ragged.values.reshape(-1)), ragged.dim)
        columns[name] = pa.LargeListArray.from_arrays(pa.array(ragged.offsets), frames)
    return pa.table(columns)


def _read_arrow(path: Path, modalities: list[str]) -> PolarityDataset:
    import datasets

    from deepmlf_llm.data.dataset import PolarityDataset

    table = datasets.load_from_disk(str(path), keep_in_memory=False).with_format("arrow")[:]
    return PolarityDataset(
        table["id"].to_pylist(),
        table["text"].to_pylist(),
        _labels(table["label"]),
        {name: _to_ragged(table[name]) for name in modalities},
        {
            name.removeprefix(_UNIMODAL): table[name].to_numpy()
            for name in table.column_names
            if name.startswith(_UNIMODAL)
        },
    )


def _labels(column: pyarrow.ChunkedArray) -> np.ndarray:
    """[N], or with several labels [N x c]."""
    width = getattr(column.type, "list_size", None)
    if width is None:
        labels: np.ndarray = column.to_numpy()
        return labels
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks]).reshape(-1, width)


def _to_ragged(column: pyarrow.ChunkedArray) -> Ragged:
    dim = column.type.value_type.list_size
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(lengths))])
    frames = [chunk.flatten().flatten().to_numpy().reshape(-1, dim) for chunk in column.chunks]
    return Ragged(np.concatenate(frames), offsets)  # concatenate copies: no file stays mapped


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own progress bars, whatever they were before."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _write_numpy(path: Path, split: PolarityDataset) -> None:
    path.mkdir()
    rows = {"id": split.ids, "text": split.texts, "unimodal": list(split.unimodal)}
    (path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    np.save(path / "label.npy", split.labels, allow_pickle=False)
    for suffix, values in split.unimodal.items():
        np.save(path / f"{_UNIMODAL}{suffix}.npy", np.asarray(values, dtype=np.float32), allow_pickle=False)
    for name, ragged in split.features.items():
        np.save(path / f"{name}.npy", ragged.values, allow_pickle=False)
        np.save(path / f"{name}_offsets.npy", ragged.offsets, allow_pickle=False)


def _read_numpy(path: Path, modalities: list[str]) -> PolarityDataset:
    from deepmlf_llm.data.dataset import PolarityDataset

    def load(name: str) -> np.ndarray:
        return np.load(path / f"{name}.npy", allow_pickle=False)

    rows = read_json(path / "rows.json", ROWS_LIMIT)
    return PolarityDataset(
        rows["id"],
        rows["text"],
        load("label"),
        {name: Ragged(load(name), load(f"{name}_offsets")) for name in modalities},
        {suffix: load(_UNIMODAL + suffix) for suffix in rows["unimodal"]},
    )
