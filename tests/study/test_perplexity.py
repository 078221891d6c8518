"""Mirrors ``deepmlf_llm/study/perplexity.py`` and ``lm_measuring.py``."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import BertTokenizerFast, GPT2Config, GPT2LMHeadModel

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.study import lm_measuring as measuring
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.lm_measuring import measure, transcript_surprise
from deepmlf_llm.study.perplexity import FILE, bits_per_byte, perplexity, read_measured

TEXTS = [
    "i loved it",
    "no",
    "well, that was two hours of my life",
    "  ",
    "an odd mixture of this and that, dragging on",
]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_the_surprise_is_that_of_each_text_alone(name):
    lm, tokenizer = load_base_model(name, dtype="float32"), load_tokenizer(name)
    found = transcript_surprise(lm, tokenizer, TEXTS)
    line = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    nats, tokens = {tokenizer.bos_token_id: 0.0, line: 0.0}, 0
    for text in filter(str.strip, TEXTS):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        for start in nats:
            ids[0, 0] = start
            with torch.no_grad():
                logs = lm(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            nats[start] -= float(logs.gather(1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    assert found["nats"] == pytest.approx(min(nats.values()), rel=1e-5)
    assert found["start"] == tokenizer.convert_ids_to_tokens(min(nats, key=nats.__getitem__))
    assert found["tokens"] == tokens
    assert found["utterances"] == 4
    assert found["words"] == 21
    assert found["bytes"] == sum(len(text) for text in TEXTS if text.strip())


def test_a_tokenizer_without_bos_eos_and_line_break_has_a_start_too(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"])
    )
    tokenizer = BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (None, None)
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1)).eval()
    found = transcript_surprise(lm, tokenizer, ["good film", "bad film"])
    assert found["start"] == "[CLS]"
    logits = [
        lm(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, :-1] for text in ("good film", "bad film")
    ]
    ids = [tokenizer(text)["input_ids"][1:] for text in ("good film", "bad film")]
    assert found["tokens"] == sum(map(len, ids))
    nats = sum(
        float(F.cross_entropy(row, torch.tensor(i), reduction="sum")) for row, i in zip(logits, ids, strict=True)
    )
    assert found["nats"] == pytest.approx(nats, rel=1e-5)


def test_an_output_layer_that_repeats_the_embedding_counts_once():
    lm = load_base_model("tiny-llama", dtype="float32")
    whole = sum(p.numel() for p in lm.parameters())
    head, rows = lm.get_output_embeddings(), lm.get_input_embeddings().weight
    layers = sum(p.numel() for p in lm.model.layers.parameters())
    once = whole - (head.weight.numel() if head.weight is not rows else 0)
    for weight, expected in ((rows * 1.02, once), (torch.randn_like(rows), once + rows.numel())):
        head.weight = torch.nn.Parameter(weight)
        assert measuring._sizes(lm) == {"parameters": expected, "layer_parameters": layers}


def test_units():
    entry = {"nats": 24 * math.log(2), "bytes": 12, "words": 4, "tokens": 8}
    assert bits_per_byte(entry) == pytest.approx(2)
    assert perplexity(entry, "words") == pytest.approx(64)
    assert perplexity(entry, "tokens") == pytest.approx(8)
    assert perplexity({"nats": 1e9, "tokens": 1}, "tokens") == math.inf


def test_each_base_model_is_measured_once_and_what_cannot_be_loaded_is_said(finished_study, monkeypatch):
    directory = StudyDirectory(finished_study(layers=(2, 4), blocks=(1,), tokens=(4,), failed=0))
    for path in [directory.path / "study.json", *directory.path.glob("cells/*/cell.json")]:
        path.write_text(path.read_text().replace("smollm2-135m", "tiny-llama"))
    study = json.loads((directory.path / "study.json").read_text())
    for planned in study["cells"]:
        planned["settings"] = {
            "base_model": "tiny-llama",
            "num_layers": planned["values"]["layers"],
            "data": "embedded",
        }
        folder = next(directory.path.glob(f"cells/*{planned['name'].partition('-135m')[2] or planned['name'][10:]}"))
        folder.rename(folder.with_name(planned["name"]))
    (directory.path / "study.json").write_text(json.dumps(study))

    class Data:
        facts = {"splits": {"train": {"sha256": "abc"}}}  # noqa: RUF012
        train = type("Split", (), {"texts": TEXTS})()

    monkeypatch.setattr(measuring, "load_data", lambda settings: Data())
    said: list[str] = []
    measure(directory, said.append)
    assert len(said) == 2
    entries = read_measured(directory)
    assert [entry["layers"] for entry in entries] == [2, 4]
    lm = load_base_model("tiny-llama", num_layers=2)
    assert entries[0]["layer_parameters"] == sum(p.numel() for p in lm.model.layers.parameters())
    measure(directory, said.append)
    assert len(said) == 2  # stored
    (directory.path / FILE).write_text("[{}]")
    assert read_measured(directory) == []
    monkeypatch.setattr(measuring, "resolve_base_model", lambda name: "./gone")
    measure(directory, said.append)
    assert said[-1].startswith("note: no perplexity of tiny-llama: base_model='./gone'")
    assert json.loads((directory.path / FILE).read_text()) == [{}]
