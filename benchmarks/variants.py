"""Both sides of a benchmark, step by step: the yardstick, and the package in each of its variants."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from published_layout import OPTIMIZER, PublishedLayout, blocks_after
from torch import Tensor, nn
from workload import Batches, Geometry, PublishedBatches

from deepmlf_llm import DeepMLFConfig, DeepMLFModel
from deepmlf_llm.data.collate import Collator

GAMMA = "joint_gamma"
LATE, FROZEN = {"fusion_entry": "first_block"}, {"freeze_fusion_tokens": True}
SEVEN, FIVE = (11, 3), (13, 4)
VARIANTS: dict[str, tuple[str, bool, dict[str, Any], tuple[int, int]]] = {
    "joint": ("joint", False, {}, SEVEN),
    GAMMA: ("joint", False, {"objective": {"gamma": 1.1}}, SEVEN),
    "fusion": ("fusion", False, {}, SEVEN),
    "fusion_cached": ("fusion", True, {}, SEVEN),
    "cached_frozen": ("fusion", True, FROZEN, SEVEN),
    "cached_first_block": ("fusion", True, LATE, SEVEN),
    "cached_recipe": ("fusion", True, {**LATE, **FROZEN, "num_tokens": 8}, FIVE),
    "cached_four": ("fusion", True, {**LATE, **FROZEN, "num_tokens": 4}, SEVEN),
}
"""Name -> ``ffw_scope``, whether the text is read from a cache, other settings (12 tokens unless said), MM Blocks: the
first and the step of ``blocks_after``."""
BF16 = "_bf16"
"""Ends the names of loops whose frozen LM is bf16. Everything that is trained is fp32 in all of them."""
LOOPS = [name + suffix for suffix in ("", BF16) for name in VARIANTS]
YARDSTICKS = {"yardstick": 0.0, "yardstick_gamma": 1.1, f"yardstick{BF16}": 0.0}
"""Name -> weight of the LM's loss; a bf16 LM runs under autocast. Ratios are to the first; of steps with that loss, to
the second."""
SHARED_TEXT = {
    name + suffix: name.removeprefix("fusion_").replace("cached", "shared_text") + suffix
    for suffix in ("", BF16)
    for name in ("fusion_cached", "cached_recipe", "cached_four")
}
"""Name of a loop with cached text -> what its predictions for texts met before are called."""


def dtype_of(name: str) -> str:
    """Of a loop's frozen LM."""
    return "bfloat16" if name.endswith(BF16) else "float32"


def make_loop(name: str, lm: Any, tokenizer: Any, batches: Batches, geometry: Geometry, **sizes: Any) -> Any:
    """One of :data:`YARDSTICKS` or :data:`LOOPS`.

    Args:
        name: of it; its dtype is the LM's.
        lm: base model, on its device.
        tokenizer: of the LM.
        batches: lists of utterances with ``input_ids``.
        geometry: sizes of the inputs.
        sizes: ``num_tokens`` (12), LoRA's ``rank`` (64), ``layers`` that MM Blocks follow (``blocks_after``).
    """
    kind = PublishedLoop if name in YARDSTICKS else OurLoop
    return kind(name, lm, tokenizer, batches, geometry, **sizes)


class Loop:
    """A training loop, one step at a time: a batch, forward, backward, AdamW over all that is trainable.

    Args:
        model: DeepMLF on its LM.
        lm: base model, on its device.
    """

    def __init__(self, model: Any, lm: Any) -> None:
        self.model, self.device = model.train(), lm.device
        self.optimizer = torch.optim.AdamW(self.trainable(), **OPTIMIZER)

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def forward(self, index: int) -> tuple[Any, Tensor]:
        """What the model says of batch ``index``, and its labels."""
        raise NotImplementedError

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, index: int = 0) -> int:
        """One training step on batch ``index``; returns the samples it saw."""
        output, labels = self.forward(index)
        self.loss(output, labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return len(labels)

    @torch.no_grad()
    def predict(self, index: int = 0) -> int:
        """Predictions for batch ``index``; returns the samples it saw."""
        self.model.eval()
        _, labels = self.forward(index)
        self.model.train()
        return len(labels)


class PublishedLoop(Loop):
    """The published loop: the text tokenised at each step, rows at random, whichever batch is asked for."""

    def __init__(self, name: str, lm: Any, tokenizer: Any, batches: Batches, geometry: Geometry, **sizes: Any) -> None:
        super().__init__(PublishedLayout(lm, geometry.modalities, **sizes), lm)
        self.gamma, self.half = YARDSTICKS[name], lm.dtype != torch.float32
        utterances = [utterance for batch in batches for utterance in batch]
        self.batches = PublishedBatches(utterances, tokenizer, geometry, len(batches[0]))

    def forward(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        batch, labels = self.batches.next()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            output = self.model({name: x.to(self.device) for name, x in batch.items()})
        return {**output, "targets": self._targets(batch).to(self.device)}, labels.to(self.device)

    def loss(self, output: dict[str, Tensor], labels: Tensor) -> Tensor:
        loss = self.model.loss(output, labels)
        if self.gamma:
            loss = loss + self.gamma * F.cross_entropy(output["logits"].transpose(1, 2).float(), output["targets"])
        return loss

    def _targets(self, batch: dict[str, Tensor]) -> Tensor:
        """Each real token but the last predicts the next real one [b x s]; -100 elsewhere."""
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        following = ids.roll(-1, dims=1).masked_fill(~real.roll(-1, dims=1), -100)
        following[:, -1] = -100
        return F.pad(following, (0, self.model.num_tokens), value=-100)


class OurLoop(Loop):
    """The package's: batches of like length, tokenised once; where the text is cached, it is read now, into memory."""

    def __init__(self, name: str, lm: Any, tokenizer: Any, batches: Batches, geometry: Geometry, **sizes: Any) -> None:
        scope, self.cached, settings, blocks = VARIANTS[name.removesuffix(BF16)]
        layers = blocks_after(lm.config.num_hidden_layers, *blocks)
        config = make_config(lm, geometry, scope, **{"layers": layers, **sizes, **settings})
        super().__init__(DeepMLFModel(lm, config), lm)
        self.batches = batches
        self.collate = Collator(tokenizer, geometry.modalities, geometry.max_tokens)
        if self.cached:
            self.model.enable_text_cache("memory")
            self.model.build_text_cache([utterance["input_ids"] for batch in batches for utterance in batch])

    def batch(self, index: int) -> dict[str, Tensor]:
        """What the model gets, on its device."""
        return {name: x.to(self.device) for name, x in self.collate(self.batches[index]).items()}

    def forward(self, index: int) -> tuple[Any, Tensor]:
        batch = self.batch(index)
        return self.model(**batch), batch["labels"]

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        loss: Tensor = output.loss
        return loss


def make_config(
    lm: Any,
    geometry: Geometry,
    scope: str,
    num_tokens: int = 12,
    rank: int = 64,
    layers: list[int] | None = None,
    **changes: Any,
) -> DeepMLFConfig:
    """DeepMLF in the yardstick's sizes; the arguments are :func:`make_loop`'s, ``changes`` any other setting."""
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
