"""A merged model predicts what the adapter predicted, from one directory, without PEFT."""

from __future__ import annotations

import pytest
import torch

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config import DeepMLFConfig
from deepmlf_llm.errors import AdapterError, ConfigError
from deepmlf_llm.inference import SentimentPredictor
from deepmlf_llm.merged import MergedDeepMLF, prediction_difference
from deepmlf_llm.merging import merge_adapter, probe_batch
from deepmlf_llm.model import DeepMLFModel

BOUND_FP32 = 1e-5
BOUND_DEQUANTISED = 1e-4


def adapter(name="tiny-llama", quantization="none", **changes):
    torch.manual_seed(0)
    config = DeepMLFConfig(fusion_layers=[1, 3], modalities={"audio": {"dim": 5}, "vision": {"dim": 3}}, **changes)
    model = DeepMLFModel(load_base_model(name, quantization=quantization), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def batch_for(model):
    return probe_batch(model.deepmlf_config, 300)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
@pytest.mark.parametrize("changes", [{}, {"r": 4, "target_modules": "all-linear"}, {"ffw_scope": "fusion"}])
def test_merging_keeps_predictions_and_needs_no_peft(name, changes, tmp_path):
    model = adapter(name, **changes)
    batch = batch_for(model)
    expected = model(**batch).polarity
    merged = model.merge_and_unload()
    assert not any("lora" in key for key in merged.state_dict())
    assert not any(type(module).__module__.startswith("peft") for module in merged.modules())
    assert (merged(**batch).polarity - expected).abs().max() < BOUND_FP32
    merged.save_pretrained(tmp_path / "merged")
    loaded = DeepMLFModel.from_pretrained(tmp_path / "merged")
    assert isinstance(loaded, MergedDeepMLF)
    assert prediction_difference(merged, loaded, batch)["largest"] == 0


def test_a_blocks_ffw_is_that_of_the_lm_without_its_lora(tmp_path):
    model = adapter(r=4, target_modules=["up_proj", "gate_proj", "down_proj"], ffw_lora_r=0)
    plain = load_base_model("tiny-llama").model.layers[1].mlp.up_proj.weight
    merged = model.merge_and_unload()
    assert torch.equal(merged.stack.blocks[1].ffw.own["up"].weight, plain)
    assert not torch.equal(merged.lm.model.layers[1].mlp.up_proj.weight, plain)


def test_the_recipes_way_measures_and_writes_what_changed(tmp_path):
    model = adapter(r=2)
    model.save_pretrained(tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged", requantize="nf4")
    assert report["adapter against merged"]["largest"] < BOUND_FP32
    assert report["adapter against what was saved"]["largest"] < BOUND_FP32
    assert report["merged against its nf4"]["largest"] > 0
    assert "differ by" in (tmp_path / "merged" / "README.md").read_text()
    predictor = SentimentPredictor.from_pretrained(tmp_path / "merged")
    (merged,) = predictor.predict(["good enough"], audio=[[[0.1] * 5] * 4])
    (original,) = SentimentPredictor.from_pretrained(tmp_path / "adapter").predict(
        ["good enough"], audio=[[[0.1] * 5] * 4]
    )
    assert merged.polarity == pytest.approx(original.polarity, abs=BOUND_FP32)
    with pytest.raises(AdapterError, match="a merged model already"):
        merge_adapter(tmp_path / "merged", tmp_path / "again")


def test_a_quantised_base_is_dequantised_first(tmp_path):
    model = adapter(quantization="nf4", r=2)
    with pytest.raises(ConfigError, match="quantised base cannot be merged"):
        model.merge_and_unload()
    model.save_pretrained(tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged", quantization="nf4")
    assert report["adapter against merged"]["largest"] < BOUND_DEQUANTISED
    assert report["adapter against what was saved"]["largest"] < BOUND_DEQUANTISED


def test_damaged_fusion_files_are_refused(tmp_path):
    adapter().merge_and_unload().save_pretrained(tmp_path / "merged")
    weights = tmp_path / "merged" / "fusion" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="damaged"):
        DeepMLFModel.from_pretrained(tmp_path / "merged")
