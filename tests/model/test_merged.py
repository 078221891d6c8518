"""A merged model predicts what the adapter predicted, from one directory, without PEFT."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from deepmlf_llm.backbones import load_base_model, load_tokenizer, quantization_of
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError, ConfigError
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.model.merged import MergedDeepMLF
from deepmlf_llm.model.merging import merge_adapter, polarities, probe_batch
from deepmlf_llm.model.peft_model import DeepMLFModel

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
    assert torch.equal(polarities(merged, batch), polarities(loaded, batch))


def test_a_blocks_ffw_is_that_of_the_lm_without_its_lora(tmp_path):
    model = adapter(r=4, target_modules=["up_proj", "gate_proj", "down_proj"], ffw_lora_r=0)
    plain = load_base_model("tiny-llama").model.layers[1].mlp.up_proj.weight
    merged = model.merge_and_unload()
    assert torch.equal(merged.stack.blocks[1].ffw.own["up"].weight, plain)
    assert not torch.equal(merged.lm.model.layers[1].mlp.up_proj.weight, plain)


def test_the_recipes_way_measures_and_writes_what_changed(tmp_path):
    model = adapter(r=2)
    model.save_pretrained(tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert list(report) == ["adapter, merged", "adapter, what was saved"]
    assert all(0 < d["mean"] <= d["largest"] < BOUND_FP32 for d in report.values())
    assert (
        f"| adapter, merged | {report['adapter, merged']['largest']:.2e} |"
        in (tmp_path / "merged" / "README.md").read_text()
    )
    predictor = SentimentPredictor.from_pretrained(tmp_path / "merged")
    utterance = {"text": ["good enough"], "audio": [[[0.1] * 5] * 4]}
    (merged,) = predictor.predict(**utterance)
    (original,) = SentimentPredictor.from_pretrained(tmp_path / "adapter").predict(**utterance)
    assert merged.polarity == pytest.approx(original.polarity, abs=BOUND_FP32)
    with pytest.raises(AdapterError, match="a merged model already"):
        merge_adapter(tmp_path / "merged", tmp_path / "again")


@pytest.mark.cpu
def test_an_adapter_that_is_served_in_bf16_is_compared_as_it_is_served(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPMLF_DTYPE", "bfloat16")
    model = adapter(r=2)
    assert model.get_base_model().dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    exact, rounded = report["adapter, what was saved"], report["adapter as it is served in bfloat16, what was saved"]
    assert exact["largest"] < BOUND_FP32 < rounded["largest"] < 0.5
    assert list(merge_adapter(tmp_path / "adapter", tmp_path / "narrow", dtype="bfloat16")) == list(report)[:2]


@pytest.fixture(scope="module")
def on_nf4(tmp_path_factory):
    """An adapter with LoRA on the LM, on a 4-bit base, saved."""
    directory = tmp_path_factory.mktemp("nf4") / "adapter"
    adapter(quantization="nf4", r=2).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_quantized_base_cannot_be_merged_into_but_its_dequantized_weights_can(kind, tmp_path):
    model = adapter(quantization=kind, r=2)
    with pytest.raises(ConfigError, match="quantized base cannot be merged"):
        model.merge_and_unload()
    model.save_pretrained(tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    bound = 0.05 if kind == "int8" else BOUND_DEQUANTISED  # int8 matmuls round their inputs too
    assert {what: d["largest"] < bound for what, d in report.items()} == {
        f"adapter on {kind}, merged": True,
        f"adapter on {kind}, what was saved": True,
    }


def test_the_original_weights_are_another_model_and_the_report_says_how_far(on_nf4, tmp_path):
    report = merge_adapter(on_nf4, tmp_path / "merged", base="16bit")
    assert report["adapter on nf4, merged"]["largest"] > BOUND_DEQUANTISED
    merged = DeepMLFModel.from_pretrained(tmp_path / "merged")
    again = DeepMLFModel.from_pretrained(on_nf4, quantization="none")
    batch = batch_for(merged)
    assert (polarities(merged, batch) - polarities(again, batch)).abs().max() < BOUND_FP32


def test_a_merged_lm_can_be_saved_in_4_bits_again(on_nf4, tmp_path):
    report = merge_adapter(on_nf4, tmp_path / "merged", requantize="nf4")
    assert report["adapter on nf4, merged"]["largest"] < BOUND_DEQUANTISED
    assert report["adapter on nf4, merged and in nf4 again"] == report["adapter on nf4, what was saved"]
    loaded = DeepMLFModel.from_pretrained(tmp_path / "merged")
    assert quantization_of(loaded.lm) == "nf4"
    linears = [m for m in loaded.lm.modules() if type(m).__name__ == "Linear4bit"]
    assert not any(m.support_avx512bf16_for_cpu for m in linears)


def test_own_ffw_weights_are_as_wide_as_the_lms(tmp_path):
    torch.manual_seed(0)
    config = DeepMLFConfig(fusion_layers=[1, 3], modalities={"audio": {"dim": 5}})
    model = DeepMLFModel(load_base_model("tiny-llama", dtype="bfloat16"), config).eval()
    batch = batch_for(model)
    expected = polarities(model, batch)
    merged = model.merge_and_unload()
    assert merged.stack.blocks[1].ffw.own["up"].weight.dtype == torch.bfloat16
    assert merged.stack.heads.text.weight.dtype == torch.float32
    assert (polarities(merged, batch) - expected).abs().max() < 0.05
    merged.save_pretrained(tmp_path / "merged")
    loaded = DeepMLFModel.from_pretrained(tmp_path / "merged", dtype="bfloat16")
    assert torch.equal(polarities(loaded, batch), polarities(merged, batch))


@pytest.mark.parametrize("what", ["truncated", "flipped", "missing", "other lm", "no list"])
def test_damaged_lm_files_are_refused(what, tmp_path):
    adapter().merge_and_unload().save_pretrained(tmp_path / "merged")
    weights = tmp_path / "merged" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    if what == "missing":
        weights.unlink()
    elif what == "other lm":
        load_base_model("tiny-gpt2").save_pretrained(tmp_path / "merged")
    elif what == "no list":
        (tmp_path / "merged" / "fusion" / "files.json").write_text("[]")
    else:
        weights.write_bytes(raw if what == "flipped" else raw[:-9])
    with pytest.raises(AdapterError):
        DeepMLFModel.from_pretrained(tmp_path / "merged")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A merged model with its tokenizer, saved."""
    directory = tmp_path_factory.mktemp("merged") / "whole"
    adapter().merge_and_unload().save_pretrained(directory, load_tokenizer("tiny-llama"))
    return directory


def test_every_file_that_is_loaded_is_listed(whole):
    listed = json.loads((whole / "fusion" / "files.json").read_text())
    there = {path.name for path in whole.iterdir() if path.is_file()}
    assert set(listed) == there - {"README.md"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(listed)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("what", ["edited", "missing"])
def test_settings_and_tokenizer_are_sealed_like_the_weights(whole, tmp_path, name, what):
    place = tmp_path / "merged"
    shutil.copytree(whole, place)
    if what == "edited":
        (place / name).write_text((place / name).read_text() + " ")
    else:
        (place / name).unlink()
    with pytest.raises(AdapterError, match=rf"{name}: (damaged or exchanged|missing)"):
        DeepMLFModel.from_pretrained(place)


@pytest.mark.parametrize(
    "listed", ["{}", "[]", "", '{"config.json": {"bytes": 1, "sha256": ""}}', '{"../x": 1}', "{" * 9999]
)
def test_an_empty_or_foreign_list_is_a_refusal(whole, tmp_path, listed):
    place = tmp_path / "merged"
    shutil.copytree(whole, place)
    (place / "fusion" / "files.json").write_text(listed)
    with pytest.raises(AdapterError, match=r"files\.json: damaged"):
        DeepMLFModel.from_pretrained(place)


@pytest.mark.parametrize(
    "name", ["model-00002-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
             "adapter_config.json", "merges.txt", "chat_template.jinja", "modeling_evil.py",
             "custom_generate/generate.py"]
)  # fmt: skip
def test_what_is_not_listed_and_would_be_loaded_is_refused(whole, tmp_path, name):
    place = tmp_path / "merged"
    shutil.copytree(whole, place)
    for harmless in ("README.md", "LICENSE", "notes.txt", ".gitattributes", ".cache/x.json"):
        (place / harmless).parent.mkdir(exist_ok=True)
        (place / harmless).write_text("anything")
    assert isinstance(DeepMLFModel.from_pretrained(place), MergedDeepMLF)
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).write_text("{}")
    with pytest.raises(AdapterError, match=rf"holds {re.escape(name)}, which files.json does not list"):
        DeepMLFModel.from_pretrained(place)


def test_a_list_of_the_first_version_seals_the_weights_only(whole, tmp_path):
    place = tmp_path / "merged"
    shutil.copytree(whole, place)
    listing = place / "fusion" / "files.json"
    facts = json.loads(listing.read_text())
    listing.write_text(json.dumps({"model.safetensors": facts["model.safetensors"]}))
    assert isinstance(DeepMLFModel.from_pretrained(place), MergedDeepMLF)
    (place / "pytorch_model.bin").write_text("x")
    with pytest.raises(AdapterError, match=r"holds pytorch_model\.bin"):
        DeepMLFModel.from_pretrained(place)


def test_a_model_saved_over_another_leaves_no_part_of_it(tmp_path):
    merged = adapter().merge_and_unload()
    merged.save_pretrained(tmp_path / "merged", load_tokenizer("tiny-llama"))
    (tmp_path / "merged" / "mine.txt").write_text("kept")
    merged.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "tokenizer.json").exists()
    assert (tmp_path / "merged" / "mine.txt").exists()
    assert isinstance(DeepMLFModel.from_pretrained(tmp_path / "merged"), MergedDeepMLF)


def test_a_merged_model_has_its_base_inside(tmp_path):
    adapter().merge_and_unload().save_pretrained(tmp_path / "merged")
    with pytest.raises(AdapterError, match="has its base inside"):
        DeepMLFModel.from_pretrained(tmp_path / "merged", base=load_base_model("tiny-llama"))


def test_damaged_fusion_files_are_refused(tmp_path):
    adapter().merge_and_unload().save_pretrained(tmp_path / "merged")
    weights = tmp_path / "merged" / "fusion" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="damaged"):
        DeepMLFModel.from_pretrained(tmp_path / "merged")
