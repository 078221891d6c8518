"""Heads: from the LM's final states and the audiovisual context to polarity.

DeepMLF section 3 (arXiv 2504.11082). All read the states after the LM's final norm; all regress the same target:

- task: MLP on [mean of the fusion tokens ; last real text token ; mean of Z]. This is the prediction;
  Segregated tokens meet in a small Transformer instead of a mean (``modules/mixing_head.py``);
- fusion: Linear on every fusion token; text: Linear on the last real text token; AV: Linear on the mean of Z.

Where nothing is heard or seen there is no Z: the task head reads the first two, and there is no AV head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from deepmlf_llm.modules.mixing_head import MixingHead, TokenMean


@dataclass
class Predictions:
    """What the heads say, in fp32.

    Notation used for tensor shapes: b batch size, n fusion tokens, o outputs.

    Args:
        task: [b x o], the prediction.
        fusion: [b x n x o], each fusion token's own.
        text: [b x o].
        av: [b x o]; None without an AV head.
    """

    task: Tensor
    fusion: Tensor
    text: Tensor
    av: Tensor | None


class SingleSafeBatchNorm(nn.BatchNorm1d):
    """BatchNorm that uses its running statistics for a training batch of one, which has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(x)


def alone(task: Tensor, text: Tensor) -> Tensor:
    """The task head's own output is the prediction, as in the paper."""
    return task


def onto_text(task: Tensor, text: Tensor) -> Tensor:
    """The task head's output is what fusion adds to what the text head says.

    The text head's part is detached: it is trained by L_text alone and stays the best that the text by itself says.
    Otherwise L_task, which sees the sum only, could move any share of a prediction from one summand to the other, and
    neither what the text says nor what fusion adds would mean anything.
    """
    return task + text.detach()


BASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"none": alone, "text": onto_text}


class Heads(nn.Module):
    """Task, fusion, text and AV heads.

    Args:
        width: d, LM width.
        context_width: d_av; 0: there is no audiovisual context, and no AV head.
        hidden_width: of the task head's MLP.
        norm: ``"batch"`` (paper) or ``"layer"`` (no dependence on the batch in training).
        dropout: before the task head.
        num_outputs: o.
        base: what the task head's output is added to: ``"none"`` (paper), or ``"text"``, the text head's output. Its
            last layer is then 0 at the start, so that the prediction starts as the text head's.
        mixing: makes of the fusion tokens what the task head reads; default: their mean (paper).
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        hidden_width: int = 64,
        norm: str = "batch",
        dropout: float = 0.0,
        num_outputs: int = 1,
        base: str = "none",
        mixing: MixingHead | None = None,
    ) -> None:
        super().__init__()
        self.mixing = mixing or TokenMean(width)
        self.task = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(self.mixing.out_width + width + context_width, hidden_width),
            SingleSafeBatchNorm(hidden_width) if norm == "batch" else nn.LayerNorm(hidden_width),
            nn.ReLU(),
            nn.Linear(hidden_width, num_outputs),
        )
        self.fusion = nn.Linear(width, num_outputs)
        self.text = nn.Linear(width, num_outputs)
        self.av = nn.Linear(context_width, num_outputs) if context_width else None
        self._on_base = BASES[base]
        if base != "none":
            last = cast(nn.Linear, self.task[-1])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor, last_text: Tensor, context_mean: Tensor | None = None) -> Predictions:
        """``tokens`` [b x n x d], ``last_text`` [b x d], ``context_mean`` [b x d_av] (None: there is no context)."""
        dtype = self.text.weight.dtype
        # Regression in fp32 whatever the LM runs in: polarity differences of 0.01 drown in bf16.
        with torch.autocast(tokens.device.type, enabled=False):
            tokens, last_text = tokens.to(dtype), last_text.to(dtype)
            context = [] if context_mean is None else [context_mean.to(dtype)]
            joint = torch.cat([self.mixing(tokens), last_text, *context], dim=-1)
            av = None if self.av is None else self.av(*context)
            text = self.text(last_text)
            return Predictions(self._on_base(self.task(joint), text), self.fusion(tokens), text, av)
