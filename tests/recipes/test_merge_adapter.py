"""recipes/merge_adapter.py: one directory out of an adapter and its base, and what that changed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from deepmlf_llm.backbones import load_base_model, quantization_of
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.model.merged import MergedDeepMLF
from deepmlf_llm.model.peft_model import DeepMLFModel


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = DeepMLFConfig(fusion_layers=[3], modalities={"audio": {"dim": 3}}, r=2)
    model = DeepMLFModel(load_base_model("tiny-llama", quantization="nf4"), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    directory = tmp_path_factory.mktemp("trained") / "adapter"
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def merge(in_process: Any, adapter: Path) -> Any:
    return partial(in_process, "merge_adapter", "--adapter", adapter)


def test_merges_says_what_changed_and_predicts_alike(merge: Any, adapter: Path, tmp_path: Path, capsys: Any) -> None:
    assert merge("--output", tmp_path / "merged") == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "merged" / "fusion" / "merge.json").read_text())
    (what, difference) = next(iter(report.items()))
    assert what == "adapter on nf4, merged"
    assert 0 < difference["mean"] <= difference["largest"] < 1e-4
    assert f"{difference['largest']:.2e}" in said
    assert f"{difference['largest']:.2e}" in (tmp_path / "merged" / "README.md").read_text()
    utterance = {"text": ["Not bad at all"], "audio": [[[0.1, 0.2, 0.3]]]}
    (one,) = SentimentPredictor.from_pretrained(adapter).predict(**utterance)
    (other,) = SentimentPredictor.from_pretrained(tmp_path / "merged").predict(**utterance)
    assert one.polarity == pytest.approx(other.polarity, abs=1e-4)


def test_other_bases_dtypes_and_4_bits_again(merge: Any, tmp_path: Path) -> None:
    words = ("--base", "16bit", "--dtype", "bfloat16", "--requantize", "nf4")
    assert merge("--output", tmp_path / "merged", *words) == 0
    report = json.loads((tmp_path / "merged" / "fusion" / "merge.json").read_text())
    assert list(report) == ["adapter on nf4, merged", "adapter on nf4, merged and in nf4 again"]
    merged = DeepMLFModel.from_pretrained(tmp_path / "merged", dtype="bfloat16")
    assert isinstance(merged, MergedDeepMLF)
    assert quantization_of(merged.lm) == "nf4"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--output", "{tmp}"), "exists"),
        (("--adapter", "nowhere"), "nowhere: expected the directory of a saved adapter"),
        (("--base", "8bit"), "16bit"),
        (("--requantise", "nf4"), "--requantize"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    merge: Any, tmp_path: Path, capsys: Any, words: tuple[str, ...], message: str
) -> None:
    assert merge("--output", tmp_path / "merged", *(word.format(tmp=tmp_path) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "merged").exists()
