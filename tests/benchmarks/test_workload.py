"""The stream of utterances: MOSI's lengths, the same for everybody, in batches as each side makes them."""

import itertools
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from workload import WORD_COUNTS, Geometry, PublishedBatches, grouped, make_utterances, representative, with_token_ids

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.data.unpickle import load_pickle

GEOMETRY = Geometry(max_tokens=30, frames=80)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny-llama")


def words(utterances):
    return [len(utterance["text"].split()) for utterance in utterances]


def test_word_counts_are_mosis(shared_dir):
    data = load_pickle(shared_dir / "data" / "mosi_utterance.pkl")
    counts = [len(str(text).split()) for split in data.values() for text in split["raw_text"]]
    assert {count: counts.count(count) for count in sorted(set(counts))} == WORD_COUNTS


@given(st.integers(20, 300))
def test_any_number_of_utterances_keeps_the_shape_of_the_histogram(count):
    found = words(make_utterances(count, Geometry(frames=5, modalities={"audio": 1, "vision": 1})))
    assert len(found) == count
    assert 9 <= statistics.median(found) <= 11
    assert 11 <= statistics.mean(found) <= 13


def test_utterances_are_reproducible_and_as_long_as_speech():
    first, again = make_utterances(40, GEOMETRY, seed=3), make_utterances(40, GEOMETRY, seed=3)
    assert [u["text"] for u in first] == [u["text"] for u in again]
    assert all(np.array_equal(a["audio"], b["audio"]) for a, b in zip(first, again, strict=True))
    for utterance in first:
        assert utterance["audio"].shape[1] == 74
        assert utterance["vision"].shape[1] == 35
        assert 1 <= len(utterance["audio"]) <= len(utterance["vision"]) <= 80
    longer = np.corrcoef(words(first), [len(utterance["audio"]) for utterance in first])[0, 1]
    assert longer > 0.7  # MOSI: 0.89


def test_grouped_batches_hold_like_lengths_and_representative_ones_span_the_epoch(tokenizer):
    utterances = with_token_ids(make_utterances(64, GEOMETRY), tokenizer, GEOMETRY.max_tokens)
    batches = grouped(utterances, 8)
    lengths = [[len(u["input_ids"]) for u in batch] for batch in batches]
    assert len(batches) == 8
    assert all(max(a) <= min(b) for a, b in itertools.pairwise(lengths))
    assert max(lengths[-1]) <= GEOMETRY.max_tokens
    assert representative(batches, 4) == [batches[1], batches[3], batches[5], batches[7]]


def test_published_batches_are_padded_to_the_limit_and_miss_no_utterance(tokenizer):
    utterances = make_utterances(8, GEOMETRY)
    batches = PublishedBatches(utterances, tokenizer, GEOMETRY, batch=4)
    rows = [batches.next(), batches.next()]
    for batch, labels in rows:
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 30)
        assert batch["audio"].shape == (4, 80, 74)
        assert labels.shape == (4,)
        real = batch["attention_mask"].bool()
        assert not (real[:, 1:] & ~real[:, :-1]).any()  # right-padded
        for row, length in enumerate(batch["vision_lengths"].tolist()):
            assert batch["vision"][row, length:].abs().sum() == 0
            assert batch["vision"][row, :length].abs().sum() > 0
    seen = torch.cat([labels for _, labels in rows]).sort().values
    assert torch.equal(seen, torch.tensor([u["label"] for u in utterances], dtype=torch.float32).sort().values)
