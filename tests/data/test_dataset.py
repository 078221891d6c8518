from __future__ import annotations

import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader

from deepmlf_llm.data.dataset import PolarityDataset
from deepmlf_llm.data.ragged import Ragged


@pytest.fixture
def dataset() -> PolarityDataset:
    sequences = [np.full((length, 2), index) for index, length in enumerate((3, 0, 1))]
    return PolarityDataset(
        ["a", "b", "c"],
        ["one", "two", "three"],
        np.array([1.0, -2.0, 0.5]),
        {"audio": Ragged.from_sequences(sequences, 2)},
        {"T": np.array([1.0, np.nan, 0.0])},
    )


def test_items(dataset):
    assert len(dataset) == 3
    assert dataset.modalities == {"audio": 2}
    item = dataset[1]
    assert set(item) == {"id", "text", "label", "audio"}
    assert (item["id"], item["text"], item["label"], item["audio"].shape) == ("b", "two", -2.0, (0, 2))
    assert type(item["label"]) is float
    assert dataset[-1]["id"] == "c"
    for index in (3, -4):
        with pytest.raises(IndexError):
            dataset[index]


def test_select(dataset):
    chosen = dataset.select([2, 0])
    assert chosen.ids == ["c", "a"]
    assert chosen.labels.tolist() == [0.5, 1.0]
    assert [len(item["audio"]) for item in chosen] == [1, 3]
    assert chosen.unimodal["T"].tolist() == [0.0, 1.0]


def test_fingerprint_covers_everything(dataset):
    before = dataset.fingerprint()
    assert pickle.loads(pickle.dumps(dataset)).fingerprint() == before
    for change in (
        lambda d: d.ids.reverse(),
        lambda d: d.texts.__setitem__(0, "uno"),
        lambda d: d.labels.__setitem__(0, 0),
        lambda d: d.features["audio"].values.__setitem__((0, 0), 9),
        lambda d: d.features["audio"].offsets.__setitem__(1, 2),
        lambda d: d.features.__setitem__("sound", d.features.pop("audio")),
        lambda d: d.unimodal["T"].__setitem__(0, 0),
    ):
        other = pickle.loads(pickle.dumps(dataset))
        change(other)
        assert other.fingerprint() != before


def test_runs_under_a_data_loader_with_workers(dataset):
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=lambda items: [item["id"] for item in items])
    assert list(loader) == [["a", "b"], ["c"]]
