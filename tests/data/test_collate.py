"""Batches: left padding, masks, absent modalities, any number of modalities."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.data.collate import Collator, token_ids, tokenise
from deepmlf_llm.data.dataset import PolarityDataset
from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.errors import DataError

DIMS = {"audio": 2, "vision": 3}


def item(text="a b", label=1.0, **frames):
    features = {name: np.full((count, DIMS.get(name, 1)), count, dtype=np.float32) for name, count in frames.items()}
    return {"id": "x", "text": text, "label": label, **features}


def test_text_is_padded_on_the_left_and_masked_by_length(tokenizer):
    batch = Collator(tokenizer, DIMS)([item("a b c"), item("d"), item("<end> e")])
    a, b, c, d, e, end = tokenizer.convert_tokens_to_ids(["a", "b", "c", "d", "e", "<end>"])
    assert tokenizer.pad_token_id == end
    assert batch["input_ids"].tolist() == [[a, b, c], [end, end, d], [end, end, e]]
    # the padding id as a real token stays real
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_frames_are_padded_with_zeros_and_masked(tokenizer):
    batch = Collator(tokenizer, DIMS)([item(audio=3, vision=0), item(audio=1, vision=2)])
    assert batch["audio"].shape == (2, 3, 2)
    assert batch["vision"].shape == (2, 2, 3)
    assert batch["audio_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert batch["vision_mask"].tolist() == [[False, False], [True, True]]
    assert batch["audio"][1].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert batch["audio"].dtype == torch.float32
    assert batch["audio_mask"].dtype == torch.bool
    assert batch["labels"].tolist() == [1.0, 1.0]
    assert batch["labels"].dtype == torch.float32
    assert set(batch) == {
        "input_ids", "attention_mask", "audio", "audio_mask", "vision", "vision_mask", "labels"
    }  # fmt: skip


@pytest.mark.parametrize("absent", [None, [], np.empty((0, 2)), np.empty((0, 0))])
def test_a_modality_that_the_whole_batch_lacks_is_one_masked_frame(tokenizer, absent):
    batch = Collator(tokenizer, DIMS)([{"text": "a", "audio": absent}, {"text": "b"}])
    assert batch["audio"].shape == (2, 1, 2)
    assert not batch["audio_mask"].any()
    assert not batch["audio"].any()
    assert "labels" not in batch


@pytest.mark.parametrize(
    "modalities", [{}, {"vision": 3}, {"heart_rate": 1, "audio": 2, "vision": 3}], ids=["none", "one", "three"]
)
def test_any_number_of_modalities(tokenizer, modalities):
    batch = Collator(tokenizer, modalities)([item(audio=2, vision=4, heart_rate=5)])
    assert {name for name in batch if f"{name}_mask" in batch} == set(modalities)
    for name, dim in modalities.items():
        assert batch[name].shape[-1] == dim


def test_dimensions_come_in_any_form(tokenizer):
    forms = {"audio": {"dim": 2, "frame_rate": None}, "vision": SimpleNamespace(dim=3)}
    assert Collator(tokenizer, forms).modalities == DIMS


def test_lists_of_numbers_are_frames_too(tokenizer):
    batch = Collator(tokenizer, DIMS)([{"text": "a", "audio": [[1, 2], [3, 4]]}])
    assert batch["audio"].tolist() == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize("frames", [np.zeros((2, 3)), np.zeros(2), np.zeros((1, 1, 2))])
def test_other_dimensions_are_refused(tokenizer, frames):
    with pytest.raises(DataError, match=r"audio of 'x' has shape .*, expected \(frames, 2\)"):
        Collator(tokenizer, DIMS)([{"id": "x", "text": "a", "audio": frames}])


def test_labels_in_all_items_or_none(tokenizer):
    with pytest.raises(DataError, match="1 of 2 items of a batch have no label"):
        Collator(tokenizer, DIMS)([item(), item(label=None)])
    with pytest.raises(DataError, match="no items"):
        Collator(tokenizer, DIMS)([])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.integers(1, 7), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5))
def test_every_row_can_be_read_back(tokenizer, rows):
    items = [item("a b c d e f g"[: 2 * words - 1], audio=audio, vision=vision) for words, audio, vision in rows]
    batch = Collator(tokenizer, DIMS)(items)
    for row, source in enumerate(items):
        kept = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert kept.tolist() == tokenizer(source["text"])["input_ids"]
        assert batch["attention_mask"][row, -1] == 1
        for name in DIMS:
            np.testing.assert_array_equal(batch[name][row][batch[f"{name}_mask"][row]], source[name])
            assert not batch[name][row][~batch[f"{name}_mask"][row]].any()


@pytest.fixture
def dataset() -> PolarityDataset:
    texts = ["a b c d e", "a", "", "a b c"]
    empty = Ragged.from_sequences([np.empty((0, 2))] * 4, 2)
    return PolarityDataset(list("wxyz"), texts, np.zeros(4), {"audio": empty})


def test_tokenising_once(tokenizer, dataset):
    tokenised = tokenise(dataset, tokenizer, max_tokens=3)
    assert tokenised.lengths == [3, 1, 1, 3]
    assert tokenised.truncated == 1
    assert len(tokenised) == 4
    assert tokenised[0]["input_ids"] == tokenizer("a b c")["input_ids"]
    assert tokenised[2]["input_ids"] == [tokenizer.bos_token_id]  # nothing was said: still one real token
    assert {key: value for key, value in tokenised[1].items() if key not in ("input_ids", "audio")} == {
        "id": "x", "text": "a", "label": 0.0
    }  # fmt: skip
    before = Collator(tokenizer, {"audio": 2}, max_tokens=3)([dataset[i] for i in range(4)])
    after = Collator(tokenizer, {"audio": 2})([tokenised[i] for i in range(4)])
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name])


def test_tokenised_and_raw_items_mix_in_a_batch(tokenizer):
    batch = Collator(tokenizer, {})([{"text": "ignored", "input_ids": [5, 6]}, {"text": "a b c"}])
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert batch["input_ids"][0, 1:].tolist() == [5, 6]


def test_special_tokens_at_the_end_survive_the_limit(tokenizer):
    from tokenizers.processors import TemplateProcessing

    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    framed = type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
    )
    framed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    ids, truncated = token_ids(["a b c d", "a"], framed, max_tokens=4)
    assert [len(row) for row in ids] == [4, 3]
    assert ids[0][0] == start
    assert ids[0][-1] == end
    assert truncated == 1
    assert token_ids([], framed) == ([], 0)


def test_a_template_surrounds_the_transcript_and_its_ending_is_never_cut():
    tokenizer = load_tokenizer("tiny-llama")
    (short, long), truncated = token_ids(["ab", "abcdefgh"], tokenizer, max_tokens=5, template="x{text}!?")
    assert tokenizer.decode(short) == "<bos>xab!?"
    assert tokenizer.decode(long) == "<bos>xabc!?"  # five tokens up to the transcript's end, then the ending
    assert truncated == 1


@pytest.mark.parametrize(
    "text", ["a b c d " * 20_000, "abcd" * 20_000, " " * 30_000 + "a b", ("a" + " " * 5000) * 40, "a" * 200_000]
)
@pytest.mark.parametrize("limit", [1, 5, 50])
def test_a_long_text_is_cut_as_if_all_of_it_had_been_read(tokenizer, text, limit):
    whole = tokenizer(text)["input_ids"]
    (found,), truncated = token_ids([text], tokenizer, limit)
    assert (found, truncated) == (whole[:limit], int(len(whole) > limit))


@pytest.mark.parametrize("text", ["word " * (1 << 20), " " * (1 << 24), "x" * (1 << 24)])
def test_no_more_of_a_text_is_read_than_is_needed(tokenizer, text):
    read = []

    def noted(texts, **options):
        read.extend([texts] if isinstance(texts, str) else texts)
        return tokenizer(texts, **options)

    noted.bos_token_id = noted.eos_token_id = noted.pad_token_id = 1
    token_ids([text], noted, 50)
    assert max(map(len, read)) <= 1 << 20
