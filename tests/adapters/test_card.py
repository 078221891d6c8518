"""The card: metrics with their split, seed and data; nothing that data or settings hold is more than text."""

from __future__ import annotations

import stat

import pytest
import torch
import yaml

from deepmlf_llm.adapters.card import adapter_card, add_results
from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.model.peft_model import DeepMLFModel

RESULT = {
    "seed": 7,
    "metrics": {"validation": {"mae": 1.25, "corr": 0.5}, "test": {"mae": 1.5}},
    "data": {
        "name": "my|data",
        "source": {"name": "a`b.pkl"},
        "splits": {"test": {"rows": 3, "sha256": "ab" * 32}},
        "used": {"valid": {"utterances": 2}, "test": {"utterances": 3}},
    },
    "train": {"best_step": 12},
}


def test_results_stand_with_split_seed_and_data(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# Card\n")
    add_results(tmp_path, RESULT)
    text = card.read_text()
    assert text.startswith("# Card\n\n## Results\n")
    assert "| metric | validation (2 utterances) | test (3 utterances) |" in text
    assert "| `mae` | 1.2500 | 1.5000 |\n| `corr` | 0.5000 |  |" in text
    assert (
        "seed 7; data `my|data` (from ``a`b.pkl``, test abababababab); step 12, chosen on the validation split" in text
    )


def test_a_result_of_data_in_memory(tmp_path):
    (tmp_path / "README.md").touch()
    add_results(tmp_path, {"seed": 1, "metrics": {"test": {"mae": float("nan")}}})
    assert "data `given in memory`" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owner/model", "owner/model"), ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("tiny-llama", None)],
)
def test_the_head_names_the_hub_id_where_there_is_one(name, expected):
    card = adapter_card(DeepMLFConfig(modalities={"audio": {"dim": 3}}, base_model_name_or_path=name), {})
    assert yaml.safe_load(card.split("---")[1]).get("base_model") == expected


def test_a_path_is_not_shown_and_the_recipe_stands_apart_from_the_file(tmp_path):
    features, source = {"encoder": "wavlm", "layer": 9}, {"source": "mosi.pkl", "sha256": "ab"}
    config = DeepMLFConfig(
        modalities={
            "audio": {"dim": 3, "features": features, "provenance": source},
            "vision": {"dim": 4, "features": {"kind": "precomputed", "source": "old.pkl", "fingerprint": "ab"}},
        },
        base_model_name_or_path=str(tmp_path / "mine"),
    )
    card = adapter_card(config, {})
    assert str(tmp_path) not in card
    assert "# DeepMLF adapter for mine\n" in card
    assert "| audio | 3 | unknown | encoder wavlm, layer 9 | mosi.pkl |" in card
    assert "| vision | 4 | unknown | unknown | old.pkl |" in card


def test_files_have_the_permissions_of_the_users_umask(tmp_path):
    import os

    torch.manual_seed(0)
    model = DeepMLFModel(
        load_base_model("tiny-llama"), DeepMLFConfig(fusion_layers=[3], r=2, modalities={"audio": {"dim": 3}})
    )
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "adapter")
        model.eval().merge_and_unload().save_pretrained(tmp_path / "merged")
    finally:
        os.umask(before)
    modes = {
        stat.S_IMODE(path.stat().st_mode)
        for place in ("adapter", "merged")
        for path in (tmp_path / place).rglob("*")
        if path.is_file()
    }
    assert modes == {0o640}
