"""Adapters of format 1 say nothing of the order of pooling and layers; it stays `after` wherever they go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from deepmlf_llm.adapters import files
from deepmlf_llm.adapters.seal import sealed
from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.model.merged import FUSION, MergedDeepMLF
from deepmlf_llm.model.peft_model import DeepMLFModel

OLD = Path(__file__).resolve().parents[1] / "fixtures" / "v1" / "adapter"


def batch(model) -> dict[str, torch.Tensor]:
    """More frames than the AV context has; modalities of different length."""
    torch.manual_seed(0)
    made = {"input_ids": torch.arange(12).reshape(2, 6) * 9 + 3}
    for frames, (name, modality) in zip((70, 9), model.deepmlf_config.modalities.items(), strict=True):
        made[name] = torch.randn(2, frames, modality.dim)
    return made


def polarity(model, given=None) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**(given or batch(model))).polarity


@pytest.fixture
def old() -> DeepMLFModel:
    model = DeepMLFModel.from_pretrained(OLD)
    assert json.loads((OLD / files.CONFIG).read_text())["schema_version"] == 1
    assert model.deepmlf_config.av_encoder.pool == "after"
    return model


def before(directory: Path) -> Path:
    """The same weights as an adapter that says `before`."""
    values = json.loads((directory / files.CONFIG).read_text())
    values["av_encoder"]["pool"] = "before"
    (directory / files.CONFIG).write_text(sealed(values))
    return directory


def test_the_order_shows(old, tmp_path):
    old.save_pretrained(tmp_path / "other")
    other = DeepMLFModel.from_pretrained(before(tmp_path / "other"))
    assert (polarity(other) - polarity(old)).abs().max() > 1e-3


def test_plain_peft_reads_it_the_same(old):
    plain = PeftModel.from_pretrained(load_base_model("tiny-llama"), OLD)
    assert plain.peft_config["default"].av_encoder.pool == "after"
    assert torch.equal(polarity(plain, batch(old)), polarity(old))


def test_saved_again_it_is_version_2_and_says_so(old, tmp_path):
    old.save_pretrained(tmp_path / "again")
    values = json.loads((tmp_path / "again" / files.CONFIG).read_text())
    assert (values["schema_version"], values["av_encoder"]["pool"]) == (2, "after")
    assert torch.equal(polarity(DeepMLFModel.from_pretrained(tmp_path / "again")), polarity(old))


def test_beside_an_adapter_of_the_other_order_each_keeps_its_own(old, tmp_path):
    old.save_pretrained(tmp_path / "other")
    alone = polarity(DeepMLFModel.from_pretrained(before(tmp_path / "other")))
    expected = polarity(old)
    old.load_adapter(tmp_path / "other", "other")
    assert torch.equal(polarity(old), expected)
    old.set_adapter("other")
    assert torch.equal(polarity(old), alone)


def test_a_merged_directory_of_format_1(old, tmp_path):
    old.merge_and_unload().save_pretrained(tmp_path / "merged")
    expected = polarity(MergedDeepMLF.from_pretrained(tmp_path / "merged"))
    config = tmp_path / "merged" / FUSION / files.CONFIG
    values = json.loads(config.read_text())
    assert values["av_encoder"].pop("pool") == "after"
    for key in ("gca_dropout", "ffw_dropout"):
        values.pop(key)
    config.write_text(sealed(values | {"schema_version": 1}))
    assert torch.equal(polarity(MergedDeepMLF.from_pretrained(tmp_path / "merged")), expected)


def test_the_version_is_sealed(old, tmp_path):
    shutil.copytree(OLD, tmp_path / "adapter")
    config = tmp_path / "adapter" / files.CONFIG
    config.write_text(config.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(files.AdapterError, match="damaged or edited"):
        DeepMLFModel.from_pretrained(tmp_path / "adapter")
