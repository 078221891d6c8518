"""A merged model: everything in one place and one directory, without PEFT, still multimodal.

Gated cross-attention cannot be folded into the LM's weights, so what is merged is LoRA: the LM's into the LM, each MM
Block's into FFW weights of its own. The fusion modules stay beside the LM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.adapters import files
from deepmlf_llm.backbones import Decoder, load_base_model, load_tokenizer
from deepmlf_llm.config import NO_LM_LORA, DeepMLFConfig
from deepmlf_llm.errors import AdapterError, ConfigError
from deepmlf_llm.fused_decoder import DeepMLFOutput, FusedDecoder
from deepmlf_llm.fused_model import FusedModel
from deepmlf_llm.injection import build_stack
from deepmlf_llm.modules import FusionStack

FUSION = "fusion"  # folder of a merged directory that holds all but the LM, in the adapter's own file format


class MergedDeepMLF(FusedModel, nn.Module):
    """A decoder with its fusion modules, for inference.

    Args:
        lm: the causal LM, LoRA folded in.
        stack: fusion modules whose FFWs own their weights.
        config: of the adapter that was merged.
    """

    def __init__(self, lm: nn.Module, stack: FusionStack, config: DeepMLFConfig) -> None:
        super().__init__()
        self.lm = lm
        self.stack = stack
        self.config = config
        config.r, config.target_modules, config.ffw_weights = 0, NO_LM_LORA, "copy"
        self._fused = FusedDecoder(Decoder(lm))
        self._fused.injection.attach()
        self.requires_grad_(False)
        self.eval()

    @property
    def deepmlf_config(self) -> DeepMLFConfig:
        return self.config

    @property
    def active_stack(self) -> FusionStack:
        return self.stack

    @property
    def fused_decoder(self) -> FusedDecoder:
        return self._fused

    def get_base_model(self) -> nn.Module:
        return self.lm

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **features: Tensor | None,
    ) -> DeepMLFOutput:
        """As :meth:`deepmlf_llm.model.DeepMLFModel.forward`."""
        return self._fused.forward(self.stack, self.config, input_ids, attention_mask, labels, **features)

    def save_pretrained(
        self, directory: str | Path, tokenizer: Any = None, report: dict[str, float] | None = None
    ) -> None:
        """Writes one directory that loads without PEFT and without the adapter.

        Args:
            directory: gets the LM as transformers saves it, and ``fusion/``.
            tokenizer: saved with it.
            report: what merging changed, for the card: ``largest`` and ``mean`` difference of predictions.
        """
        from safetensors.torch import save_file

        with files.written_aside(Path(directory)) as aside:
            self.lm.save_pretrained(aside)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(aside)
            fusion = aside / FUSION
            fusion.mkdir()
            save_file({k: v.contiguous() for k, v in self.stack.state_dict().items()}, fusion / files.WEIGHTS)
            (fusion / files.CONFIG).write_text(self.config.to_json())
            files.seal(fusion, files.package_versions())
            if report is not None:
                (fusion / "merge.json").write_text(json.dumps(report, indent=2) + "\n")
            (aside / files.CARD).write_text(_card(self.config, report))

    @staticmethod
    def is_saved_in(directory: str | Path) -> bool:
        return (Path(directory) / FUSION / files.CONFIG).is_file()

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, quantization: str = "none", dtype: str = "auto", attn_implementation: str = "auto"
    ) -> MergedDeepMLF:
        """Loads a merged directory.

        Raises:
            AdapterError: fusion files that are damaged or do not fit the LM beside them.
        """
        fusion = Path(directory) / FUSION
        config = files.read_config(fusion)
        tensors = files.read_weights(fusion, config)
        lm = load_base_model(str(directory), quantization, dtype, attn_implementation)
        config.dequantize_copy = True  # own FFW weights come from the file, whatever the LM's are stored in
        try:
            stack = build_stack(Decoder(lm), config)
        except ConfigError as error:
            raise AdapterError(f"{fusion}: {error}") from error
        files.check_tensors(tensors, stack.state_dict(), fusion)
        stack.load_state_dict(tensors)
        return cls(lm, stack, config)


def tokenizer_beside(directory: str | Path, config: DeepMLFConfig) -> Any:
    """The tokenizer of an adapter (its base's) or of a merged directory (its own, where it was saved with one)."""
    if (Path(directory) / "tokenizer_config.json").is_file():
        return load_tokenizer(str(directory))
    return load_tokenizer(config.base_model_name_or_path, config.revision)


@torch.inference_mode()
def prediction_difference(one: nn.Module, other: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
    """Largest and mean absolute difference of two models' polarities on one batch."""
    difference = (one(**batch).polarity.float() - other(**batch).polarity.float()).abs()
    return {"largest": difference.max().item(), "mean": difference.mean().item()}


def _card(config: DeepMLFConfig, report: dict[str, float] | None) -> str:
    measured = (
        f"Predictions on a probe batch, adapter against merged: they differ by {report['largest']:.2e} at most, "
        f"{report['mean']:.2e} in the mean.\n"
        if report
        else ""
    )
    return f"""---
library_name: deepmlf_llm
base_model: {config.base_model_name_or_path}
tags: [deepmlf, multimodal, sentiment]
---

# Merged DeepMLF model on {config.base_model_name_or_path}

The language model with its LoRA folded in, and the fusion modules in `{FUSION}/`; MM Blocks own their FFW weights.
{measured}
```python
from deepmlf_llm import SentimentPredictor

SentimentPredictor.from_pretrained("PATH OF THIS DIRECTORY").predict(text=["..."])
```
"""
