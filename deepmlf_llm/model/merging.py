"""Merging an adapter directory into a model directory, and measuring what that changes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.adapters.compatibility import trained_dtype
from deepmlf_llm.adapters.hub import local_directory
from deepmlf_llm.backbones import QUANTIZATIONS, cpu_or_cuda_dtype, is_quantized, load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError, ConfigError
from deepmlf_llm.model.merged import MergedDeepMLF, tokenizer_beside
from deepmlf_llm.model.peft_model import DeepMLFModel

BASES = (None, "dequantized", "16bit")
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
    base: str | None = None,
    requantize: str | None = None,
    base_model: str | None = None,
) -> dict[str, dict[str, float]]:
    """Merges, saves, loads what was saved, and compares its predictions with the adapter's on the base of its training.

    Args:
        adapter: directory of a trained adapter.
        output: directory to write.
        dtype: of the merged LM; ``"auto"``: bf16 on CUDA, else fp32, in which a sum of weights is not rounded.
        base: ``"dequantized"``: merge into what the training's quantization makes of the weights, which keeps the
            predictions; ``"16bit"``: into the original weights. Default: ``"dequantized"`` for an adapter that was
            trained on a quantized base; the two are the same for any other.
        requantize: quantize the merged LM again (``"nf4"``, ``"fp4"``, ``"int8"``), for what that costs in accuracy.
        base_model: hub id or path of the base model; default: the one that the adapter names.

    Returns:
        What was compared -> largest and mean absolute difference of polarities on a probe batch. The card says it too.

    Raises:
        AdapterError: no whole adapter, or a merged model already.
        ConfigError: an unknown ``base`` or ``requantize``.
    """
    if base not in BASES:
        raise ConfigError(f"base={base!r}: expected 'dequantized' or '16bit'")
    if requantize not in (None, *QUANTIZATIONS[1:]):
        raise ConfigError(f"requantize={requantize!r}: expected one of {', '.join(map(repr, QUANTIZATIONS[1:]))}")
    widened = dtype == "auto" and not torch.cuda.is_available()
    if widened:
        dtype = "float32"
    directory = local_directory(adapter)
    if MergedDeepMLF.is_saved_in(directory):
        raise AdapterError(f"{adapter}: a merged model already")
    trained: Any = DeepMLFModel.from_pretrained(directory, base=base_model, dtype=dtype)
    batch = probe_batch(trained.deepmlf_config, trained.get_base_model().config.get_text_config().vocab_size)
    expected = polarities(trained, batch)
    trained_on = trained.deepmlf_config.base_quantization
    served = _served_in(trained.deepmlf_config) if widened and requantize is None else None
    if is_quantized(trained.get_base_model()):
        trained = _on_unquantized_base(trained, directory, dtype, base or "dequantized", base_model)
    tokenizer = tokenizer_beside(directory, trained.deepmlf_config, trained.get_base_model())
    merged = trained.merge_and_unload()
    before = "adapter" if trained_on in (None, "none") else f"adapter on {trained_on}"
    report = {f"{before}, merged": difference(expected, polarities(merged, batch))}
    if requantize is not None:
        merged = _requantized(merged, requantize, dtype)
        report[f"{before}, merged and in {requantize} again"] = difference(expected, polarities(merged, batch))
    merged.save_pretrained(output, tokenizer, report)
    saved = polarities(MergedDeepMLF.from_pretrained(output, dtype=dtype), batch)
    report |= {f"{before}, what was saved": difference(expected, saved)}
    if served is not None:
        as_served = polarities(DeepMLFModel.from_pretrained(directory, base=base_model), batch)
        report |= {f"{before} as it is served in {served}, what was saved": difference(as_served, saved)}
    return report


def _served_in(config: DeepMLFConfig) -> str | None:
    """The dtype that this CPU serves an adapter on an unquantized base in, where it is narrower than fp32."""
    if config.base_quantization not in (None, "none"):
        return None
    served = str(cpu_or_cuda_dtype(trained_dtype(config, "auto"))).removeprefix("torch.")
    return None if served == "float32" else served


def _on_unquantized_base(
    trained: DeepMLFModel, directory: Path, dtype: str, base: str, base_model: str | None
) -> DeepMLFModel:
    """The adapter on weights that a sum can be put into."""
    name, revision = trained.deepmlf_config.base_model_name_or_path, trained.deepmlf_config.revision
    if base == "16bit":
        model: Any = DeepMLFModel.from_pretrained(directory, base=base_model, quantization="none", dtype=dtype)
        return model
    lm: Any = trained.eject()
    lm = lm.dequantize().to(cpu_or_cuda_dtype(dtype))
    lm.name_or_path = lm.config._name_or_path = name  # dequantizing forgets it
    model = DeepMLFModel.from_pretrained(directory, base=lm)
    model.deepmlf_config.revision = revision
    return model


def _requantized(merged: MergedDeepMLF, kind: str, dtype: str) -> MergedDeepMLF:
    """The merged model with its LM quantized; bitsandbytes does that while loading."""
    with tempfile.TemporaryDirectory() as directory:
        lm: Any = merged.get_base_model()
        name = lm.name_or_path
        lm.save_pretrained(directory)
        quantized = load_base_model(directory, kind, dtype)
    quantized.name_or_path = quantized.config._name_or_path = name
    return MergedDeepMLF(quantized, merged.active_stack, merged.deepmlf_config)


@torch.inference_mode()
def polarities(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Polarities of a batch [b], on the CPU, in eval mode."""
    device = next(model.parameters()).device
    result: Tensor = model.eval()(**{name: value.to(device) for name, value in batch.items()}).polarity.cpu()
    return result


def difference(one: Tensor, other: Tensor) -> dict[str, float]:
    """Largest and mean absolute difference."""
    apart = (one - other).abs()
    return {"largest": apart.max().item(), "mean": apart.mean().item()}
