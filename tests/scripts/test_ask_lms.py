"""Mirrors ``scripts/ask_lms.py``."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from scripts import ask_lms

ROWS = [[5, 9, 7, 20], [8, 6]]


@pytest.fixture(scope="module")
def lm():
    with torch.no_grad():
        yield load_base_model("tiny-llama", dtype="float32")


@torch.no_grad()
def logs(lm, ids):
    return lm(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("start", [None, 3])
def test_bits_are_of_every_token_but_the_first(lm, start):
    nats = 0.0
    for row in ROWS:
        ids = row if start is None else [start, *row]
        found = logs(lm, ids)
        for at, token in enumerate(ids):
            if at > ids.index(row[0]):
                nats -= float(found[at - 1, token])
    assert ask_lms.bits_per_byte(lm, ROWS, [6, 2], start) == pytest.approx(nats / math.log(2) / 8, rel=1e-5)


def test_an_answer_is_the_next_token(lm):
    share, odds = ask_lms.answers(lm, ROWS, (11, 12))
    said = [logs(lm, row)[-1] for row in ROWS]
    assert share == pytest.approx(sum(float(s[11].exp() + s[12].exp()) for s in said) / 2, rel=1e-4)
    assert odds.tolist() == pytest.approx([float(s[11] - s[12]) for s in said], rel=1e-3)


def test_what_may_stand_before_a_transcript_is_the_tokenizers_own():
    tokenizer = load_tokenizer("tiny-llama")
    found = ask_lms.starts(tokenizer)
    assert found[ask_lms.NOTHING] is None
    assert found[f"`{tokenizer.bos_token}`"] == tokenizer.bos_token_id
    assert None not in [token for name, token in found.items() if name != ask_lms.NOTHING]


def test_both_tables_have_a_row_for_each_lm_of_the_grid(tmp_path, capsys, isolated_cache):
    backbone = [
        {"base_model": name, "settings": {"text.template": "{text} That was"}} for name in ("tiny-llama", "tiny-gpt2")
    ]
    grid = {"name": "g", "fixed": {"dtype": "float32", "text": {"max_tokens": 16}}, "grid": [{"backbone": backbone}]}
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    assert ask_lms.main(["--grid", str(path), "--texts", "3"]) == 0
    reading, saying = capsys.readouterr().out.strip().split("\n\n")
    for table, columns in ((reading, 2), (saying, 3)):
        rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
        assert [row[0] for row in rows] == ["tiny-llama", "tiny-gpt2"]
        assert {len(row) for row in rows} == {columns}
