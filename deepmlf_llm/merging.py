"""Merging an adapter directory into a model directory, and measuring what that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.config import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.merged import MergedDeepMLF, prediction_difference
from deepmlf_llm.model import DeepMLFModel

PROBE_ROWS, PROBE_FRAMES = 8, 12


def probe_batch(config: DeepMLFConfig, vocabulary: int) -> dict[str, Tensor]:
    """A batch to compare models on: texts of different length, standard normal features, some of them absent."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.arange(1, PROBE_ROWS + 1) * 3
    real = torch.arange(int(lengths.max())) >= lengths.max() - lengths[:, None]
    batch = {
        "input_ids": torch.randint(vocabulary, real.shape, generator=generator),
        "attention_mask": real.long(),
    }
    for name, modality in config.modalities.items():
        batch[name] = torch.randn(PROBE_ROWS, PROBE_FRAMES, modality.dim, generator=generator)
        frames = torch.randint(0, PROBE_FRAMES + 1, (PROBE_ROWS, 1), generator=generator)
        batch[f"{name}_mask"] = torch.arange(PROBE_FRAMES) < frames
    return batch


def merge_adapter(
    adapter: str | Path,
    output: str | Path,
    dtype: str = "auto",
    quantization: str = "none",
    requantize: str | None = None,
) -> dict[str, dict[str, float]]:
    """Merges, saves, loads what was saved, and compares its predictions with the adapter's.

    Args:
        adapter: directory of a trained adapter.
        output: directory to write.
        dtype: of the merged LM.
        quantization: merge into the dequantised weights of a base quantised so; ``"none"``: into the original.
        requantize: also compare with the merged model loaded in this quantisation.

    Returns:
        What was compared -> largest and mean absolute difference of polarities on a probe batch.

    Raises:
        AdapterError: no whole adapter, or a merged model already.
    """
    before = _with_base(adapter, dtype, quantization, dequantised=False)
    batch = probe_batch(before.deepmlf_config, before.get_base_model().config.get_text_config().vocab_size)
    expected = before.eval()
    merged = _with_base(adapter, dtype, quantization, dequantised=quantization != "none").merge_and_unload()
    report = {"adapter against merged": prediction_difference(expected, merged, batch)}
    config = merged.deepmlf_config
    tokenizer = load_tokenizer(config.base_model_name_or_path, config.revision)
    merged.save_pretrained(output, tokenizer, report["adapter against merged"])
    saved = MergedDeepMLF.from_pretrained(output, dtype=dtype)
    report["adapter against what was saved"] = prediction_difference(expected, saved, batch)
    if requantize is not None:
        quantised = MergedDeepMLF.from_pretrained(output, quantization=requantize, dtype=dtype)
        report[f"merged against its {requantize}"] = prediction_difference(saved, quantised, batch)
    return report


def _with_base(adapter: str | Path, dtype: str, quantization: str, dequantised: bool) -> DeepMLFModel:
    if MergedDeepMLF.is_saved_in(adapter):
        raise AdapterError(f"{adapter}: a merged model already")
    if not dequantised:
        model: Any = DeepMLFModel.from_pretrained(adapter, quantization=quantization, dtype=dtype)
        return model
    from deepmlf_llm.adapters.files import read_config

    config = read_config(adapter)
    base = load_base_model(config.base_model_name_or_path, quantization, dtype, revision=config.revision)
    name = base.name_or_path
    base = base.dequantize()
    base.name_or_path = base.config._name_or_path = name
    model = DeepMLFModel.from_pretrained(adapter, base=base)
    return model
