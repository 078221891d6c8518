"""Tokenizers: of any kind they start texts with BOS and pad on the left; ids and positions fit the decoder."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
from transformers import ByT5Tokenizer

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.backbones.toys import toy_model, toy_tokenizer
from deepmlf_llm.backbones.vocabulary import (
    check_ids,
    check_positions,
    check_text,
    check_tokenizer,
    prepare_tokenizer,
    single_token_ids,
)
from deepmlf_llm.config.sections import TextConfig
from deepmlf_llm.data.collate import Collator, token_ids
from deepmlf_llm.errors import BaseModelError, ConfigError, DataError


@pytest.fixture
def in_python():
    """A tokenizer without a Rust backend."""
    return prepare_tokenizer(ByT5Tokenizer(bos_token="<s>", eos_token="</s>"))


def test_a_tokenizer_without_a_rust_backend_starts_with_bos(in_python, tmp_path):
    assert not in_python.is_fast
    bos = in_python.bos_token_id
    ids, truncated = token_ids(["fine", "", "a longer one"], in_python, max_tokens=8, template="{text} so:")
    assert [row[0] for row in ids] == [bos] * 3
    assert truncated == 1
    assert [row.count(bos) for row in ids] == [1, 1, 1]
    assert len(ids[2]) == 8 + len(" so:")
    batch = Collator(in_python, {})([{"text": "a"}, {"text": "abc"}])
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert copy.deepcopy(in_python)("a") == in_python("a") == pickle.loads(pickle.dumps(in_python))("a")
    in_python.save_pretrained(tmp_path)
    toy_model("tiny-llama").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("a")["input_ids"] == in_python("a")["input_ids"]


def test_a_tokenizer_without_any_special_token_is_refused():
    bare = toy_tokenizer()
    bare.pad_token = bare.bos_token = bare.eos_token = None
    with pytest.raises(BaseModelError, match="no pad, end, begin or unknown token"):
        prepare_tokenizer(bare)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused_by_name():
    tokenizer = load_tokenizer("tiny-llama")
    check_tokenizer(tokenizer, 259, "x")
    with pytest.raises(
        BaseModelError, match=r"base_model='x': its tokenizer has ids up to 258, its embedding 256 rows"
    ):
        check_tokenizer(tokenizer, 256, "x")


def test_padding_beyond_the_embedding_pads_with_another_token():
    tokenizer = toy_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    rows = len(tokenizer) - 1
    assert tokenizer.pad_token_id == rows
    check_tokenizer(tokenizer, rows, "x")
    assert tokenizer.pad_token == "<eos>"
    check_ids([tokenizer("plain")["input_ids"]], rows, tokenizer)
    with pytest.raises(DataError, match=r"text 1: the token '\[PAD\]' \(259\) has no row in the embedding of 259"):
        check_ids([[1], tokenizer("and [PAD]")["input_ids"]], rows, tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 249}, r"max_tokens=249 and num_fusion_tokens=8 make 257 positions; this LM has 256: "
         r"text.max_tokens=248 would fit"),
        ({"max_tokens": 248, "template": "{text} so:"}, r"4 tokens of the template and .* make 260 positions.*=244"),
        ({"max_tokens": 9, "template": "A review: {text}"}, r"before {text} has 11 tokens, and text.max_tokens=9"),
        ({"template": "{text}" + 300 * "x"}, "shorten the template or use fewer fusion tokens"),
    ],
)  # fmt: skip
def test_every_token_has_a_position(settings, message):
    tokenizer, limit = load_tokenizer("tiny-gpt2"), SimpleNamespace(max_position_embeddings=256)
    with pytest.raises(ConfigError, match=message):
        check_positions(tokenizer, TextConfig(**settings), 8, limit)
    if "before" not in message:  # which is no matter of positions
        check_positions(tokenizer, TextConfig(**settings), 8, SimpleNamespace())


def test_the_longest_row_that_fits_runs():
    lm, tokenizer = load_base_model("tiny-gpt2"), load_tokenizer("tiny-gpt2")
    text = TextConfig(max_tokens=244, template="{text} so:")
    check_text(tokenizer, lm, text, 8, "tiny-gpt2")
    ids, _ = token_ids(["x" * 500], tokenizer, text.max_tokens, text.template)
    assert len(ids[0]) + 8 == lm.config.max_position_embeddings


def words_of(*vocabulary, lower=False):
    """A tokenizer of these words; ``Ġ`` begins one that follows a space."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = {piece: index for index, piece in enumerate(["<unk>", *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_one_token_a_label_after_a_space_where_all_have_one_else_without():
    assert single_token_ids(words_of("bad", "good", "Ġbad", "Ġgood"), ["bad", "good"]) == {"bad": 3, "good": 4}
    assert single_token_ids(words_of("bad", "good", "Ġbad"), ["bad", "good"]) == {"bad": 1, "good": 2}
    bytewise = toy_tokenizer()  # the space is a token, too
    assert single_token_ids(bytewise, "123") == {digit: bytewise(digit)["input_ids"][0] for digit in "123"}


def test_labels_that_are_no_token_of_their_own_are_refused_by_name():
    tokenizer = words_of("bad", "very", "Ġgood", lower=True)
    with pytest.raises(ConfigError) as caught:
        single_token_ids(tokenizer, ["very good", "fine", "bad", "Bad"])
    for part in (
        "verbalised_steps: 'very good' is not a single token of this tokenizer (very Ġgood); take another label",
        "'fine' is not a single token of this tokenizer (<unk>)",
    ):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=r"'Bad' and 'bad' are the same token \(1\); take another label"):
        single_token_ids(tokenizer, ["bad", "Bad", "very"])
