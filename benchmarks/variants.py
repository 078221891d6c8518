"""The package's side of a benchmark: DeepMLF in either scope, with or without cached text, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from published_layout import OPTIMIZER, blocks_after
from torch import Tensor, nn
from workload import Geometry

from deepmlf_llm import DeepMLFConfig, DeepMLFModel
from deepmlf_llm.data.collate import Collator

GAMMA = "joint_gamma"
LATE, FROZEN = {"fusion_entry": "first_block"}, {"freeze_fusion_tokens": True}
VARIANTS: dict[str, tuple[str, bool, dict[str, Any], int | None]] = {
    "joint": ("joint", False, {}, None),
    GAMMA: ("joint", False, {"objective": {"gamma": 1.1}}, None),
    "fusion": ("fusion", False, {}, None),
    "fusion_cached": ("fusion", True, {}, None),
    "cached_frozen": ("fusion", True, FROZEN, None),
    "cached_first_block": ("fusion", True, LATE, None),
    "cached_best": ("fusion", True, {**LATE, "truncate_lm": True}, 5),
}
"""Name -> ``ffw_scope``, whether the text is read from a cache, other settings, how many of the yardstick's MM Blocks
(the lowest; None: all)."""
LOOPS = {
    f"{name}{suffix}": (name, dtype) for suffix, dtype in (("", "float32"), ("_bf16", "bfloat16")) for name in VARIANTS
}
"""Name -> variant, dtype of the frozen LM. Everything that is trained is fp32 in all of them."""
YARDSTICKS = {"yardstick": ("float32", 0.0), "yardstick_gamma": ("float32", 1.1), "yardstick_bf16": ("bfloat16", 0.0)}
"""Name -> dtype of the yardstick's LM (with bf16 it runs under autocast), weight of the LM's loss. Ratios are to the
first; of steps with that loss, to the second."""
SHARED_TEXT = {
    "fusion_cached": "shared_text",
    "cached_best": "shared_text_best",
    "fusion_cached_bf16": "shared_text_bf16",
    "cached_best_bf16": "shared_text_best_bf16",
}
"""Name of a loop with cached text -> what its predictions for texts met before are called."""


def make_config(
    lm: Any,
    geometry: Geometry,
    scope: str,
    num_tokens: int = 12,
    rank: int = 64,
    layers: list[int] | None = None,
    **changes: Any,
) -> DeepMLFConfig:
    """DeepMLF in the yardstick's sizes; the arguments are :class:`OurLoop`'s, ``changes`` any other setting."""
    return DeepMLFConfig(
        num_fusion_tokens=num_tokens,
        fusion_layers=layers or blocks_after(lm.config.num_hidden_layers),
        ffw_scope=scope,
        ffw_lora_r=rank,
        ffw_lora_alpha=rank,
        modalities={name: {"dim": width} for name, width in geometry.modalities.items()},
        text={"max_tokens": geometry.max_tokens},
        **changes,
    )


class OurLoop:
    """Batches of like length, tokenised once; collate, forward, backward, the yardstick's AdamW.

    Args:
        lm: base model, on its device.
        tokenizer: of the LM.
        batches: lists of utterances with ``input_ids``.
        geometry: sizes of the inputs.
        scope, cached, settings, blocks: as in :data:`VARIANTS`; a cache is filled now, in memory.
        num_tokens, rank: as in the yardstick.
        layers: LM layers that MM Blocks follow; default: the yardstick's.
    """

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        batches: Sequence[Sequence[Mapping[str, Any]]],
        geometry: Geometry,
        scope: str = "joint",
        cached: bool = False,
        settings: Mapping[str, Any] | None = None,
        blocks: int | None = None,
        num_tokens: int = 12,
        rank: int = 64,
        layers: list[int] | None = None,
    ) -> None:
        layers = (layers or blocks_after(lm.config.num_hidden_layers))[:blocks]
        config = make_config(lm, geometry, scope, num_tokens, rank, layers, **(settings or {}))
        self.device = lm.device
        self.model = DeepMLFModel(lm, config).train()
        self.batches = batches
        self.collate = Collator(tokenizer, geometry.modalities, geometry.max_tokens)
        self.optimizer = torch.optim.AdamW(self.trainable(), **OPTIMIZER)
        if cached:
            self.model.enable_text_cache("memory")
            self.model.build_text_cache([utterance["input_ids"] for batch in batches for utterance in batch])

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def step(self, index: int) -> int:
        """One training step on batch ``index``; returns the samples it saw."""
        batch = self.batch(index)
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return len(batch["labels"])

    @torch.no_grad()
    def predict(self, index: int) -> int:
        """Predictions for batch ``index``; returns the samples it saw."""
        self.model.eval()
        batch = self.batch(index)
        self.model(**batch)
        self.model.train()
        return len(batch["labels"])

    def epoch(self, batches: int | None = None) -> int:
        """A training step on each of the first ``batches`` (default: all); returns the samples seen."""
        return sum(self.step(index) for index in range(len(self.batches) if batches is None else batches))

    def predict_epoch(self) -> int:
        """Predictions for each of the batches; returns the samples seen."""
        return sum(self.predict(index) for index in range(len(self.batches)))

    def batch(self, index: int) -> dict[str, Tensor]:
        """What the model gets, on its device."""
        return {name: x.to(self.device) for name, x in self.collate(self.batches[index]).items()}
