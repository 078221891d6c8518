"""Mirrors ``scripts/ask_lms.py``."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training.data import load_data
from deepmlf_llm.training.settings import RunSettings
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


def test_what_may_stand_before_a_transcript():
    assert ask_lms.starts(load_tokenizer("tiny-llama")) == {
        "nothing": None,
        "a line break": 201,
        "`<bos>`": 1,
        "`<eos>`": 2,
        "`<pad>`": 0,
    }


def grid_of(tmp_path, backbone):
    grid = {"name": "g", "fixed": {"dtype": "float32", "text": {"max_tokens": 16}}, "grid": [{"backbone": backbone}]}
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    return str(path)


QUESTION = {"text.template": "{text} That was"}


@torch.no_grad()
def test_the_tables_are_of_transcripts_from_all_over_the_split(tmp_path, capsys, isolated_cache, lm):
    backbone = [{"base_model": name, "settings": QUESTION} for name in ("tiny-llama", "tiny-gpt2")]
    assert ask_lms.main(["--grid", grid_of(tmp_path, backbone), "--texts", "3", "--words", "a", "b"]) == 0
    reading, saying = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        for table in capsys.readouterr().out.strip().split("\n\n")
    )
    assert [row[0] for row in reading] == [row[0] for row in saying] == ["tiny-llama", "tiny-gpt2"]

    tokenizer, train = load_tokenizer("tiny-llama"), load_data(RunSettings.from_dict({}, "settings")).train
    chosen = [0, len(train) // 3, 2 * len(train) // 3]
    bits = {}
    for name, start in ask_lms.starts(tokenizer).items():
        nats, size = 0.0, 0
        for i in chosen:
            ids = tokenizer(train.texts[i], add_special_tokens=False)["input_ids"]
            whole = [*([] if start is None else [start]), *ids]
            found = logs(lm, whole)[:-1].gather(1, torch.tensor(whole[1:])[:, None])[:, 0]
            nats -= float(found[-(len(ids) - 1) :].sum())
            size += len(train.texts[i].encode()) - 1  # the tiny tokenizer's tokens are bytes
        bits[name] = nats / math.log(2) / size
    best = min(bits, key=bits.get)
    shown = [f"{name} **{value:.2f}**" if name == best else f"{name} {value:.2f}" for name, value in bits.items()]
    assert reading[0][1] == ", ".join(shown)

    odds, share = [], 0.0
    for i in chosen:
        ids = [1, *tokenizer(train.texts[i], add_special_tokens=False)["input_ids"][:15]]
        said = logs(lm, [*ids, *tokenizer(" That was", add_special_tokens=False)["input_ids"]])[-1]
        odds.append(float(said[67] - said[68]))
        share += float(said[67].exp() + said[68].exp()) / 3
    corr = torch.corrcoef(torch.tensor([odds, [float(train.labels[i]) for i in chosen]]))[0, 1]
    assert saying[0][1:] == [f"{share:.2f}", f"{float(corr):.2f}"]


def test_words_of_several_tokens_are_refused(tmp_path, isolated_cache):
    path = grid_of(tmp_path, {"base_model": "tiny-llama", "settings": QUESTION})
    with pytest.raises(ConfigError, match="--words 'good' 'a': not one token each for tiny-llama"):
        ask_lms.main(["--grid", path, "--texts", "2", "--words", "good", "a"])


@pytest.mark.parametrize("backbone", ["tiny-llama", ["tiny-llama"], {"base_model": "tiny-llama"}])
def test_a_grid_without_questions_is_refused(tmp_path, capsys, backbone):
    with pytest.raises(SystemExit):
        ask_lms.main(["--grid", grid_of(tmp_path, backbone)])
    assert "no base model with a question of its own" in capsys.readouterr().err
