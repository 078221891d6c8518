"""Heads: from the LM's final states and the audiovisual context to polarity.

DeepMLF section 3 (arXiv 2504.11082). All read the states after the LM's final norm; all regress the same target:

- task: MLP on [mean of the fusion tokens ; last real text token ; mean of Z]. This is the prediction;
  Segregated tokens meet in a small Transformer instead of a mean (``modules/mixing_head.py``);
- fusion: Linear on every fusion token; text: Linear on the last real text token; AV: Linear on the mean of Z.

Where nothing is heard or seen there is no Z: the task head reads the first two, and there is no AV head. Elsewhere it
may leave out the mean of Z: what is heard and seen then reaches it through the fusion tokens alone.

With a verbaliser the LM itself predicts the polarity after the last fusion token, instead of the task head or beside
it. That position has read the text, audio and vision and all other fusion tokens; the text never hears, and with
``ffw_scope="fusion"`` nothing that is trained reaches it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from deepmlf_llm.modules.mixing_head import MixingHead, TokenMean
from deepmlf_llm.modules.prototypes import OrdinalPrototypes
from deepmlf_llm.modules.verbaliser import Verbaliser


@dataclass
class Predictions:
    """What the heads say, in fp32.

    Notation used for tensor shapes: b batch size, n fusion tokens, o outputs.

    Args:
        task: [b x o], of the task head; where there is none, the verbalised polarity.
        fusion: [b x n x o], each fusion token's own.
        text: [b x o].
        av: [b x o]; None without an AV head.
        verbalised: [b x 1], where there is a task head beside it.
        is_positive: [b x 1], a logit, where L_polarity is wanted.
        near: log-probabilities of the k prototypes [b x k], where L_prototypes is wanted.
        steps: polarity of each prototype.
        modalities: name -> [b x o], where a modality has a head of its own.
    """

    task: Tensor
    fusion: Tensor
    text: Tensor
    av: Tensor | None
    verbalised: Tensor | None = None
    is_positive: Tensor | None = None
    near: Tensor | None = None
    steps: tuple[float, ...] = ()

    @property
    def final(self) -> Tensor:
        """[b x o], the prediction: the task head's or the verbalised, or the mean of both."""
        return self.task if self.verbalised is None else (self.task + self.verbalised) / 2

    modalities: dict[str, Tensor] = field(default_factory=dict)


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
        verbaliser: predicts the polarity through the LM's own head.
        verbalised_only: there is no task head.
        tells_sign: a Linear on what the task head reads separates positive from negative, for an auxiliary loss.
        prototypes: to which the mean of the fusion tokens is drawn, for another.
        modalities: that have a head of their own, a Linear on the mean of their encoded frames.
        task_reads_context: the task head reads the mean of Z (paper).
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
        verbaliser: Verbaliser | None = None,
        verbalised_only: bool = False,
        tells_sign: bool = False,
        prototypes: OrdinalPrototypes | None = None,
        modalities: Sequence[str] = (),
        task_reads_context: bool = True,
    ) -> None:
        super().__init__()
        self.mixing = mixing or TokenMean(width)
        self.task_reads_context = task_reads_context
        read_width = self.mixing.out_width + width + (context_width if task_reads_context else 0)
        self.task: nn.Sequential | None = None
        if not verbalised_only:
            self.task = nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(read_width, hidden_width),
                SingleSafeBatchNorm(hidden_width) if norm == "batch" else nn.LayerNorm(hidden_width),
                nn.ReLU(),
                nn.Linear(hidden_width, num_outputs),
            )
        self.fusion = nn.Linear(width, num_outputs)
        self.text = nn.Linear(width, num_outputs)
        self.av = nn.Linear(context_width, num_outputs) if context_width else None
        self.modalities = nn.ModuleDict({name: nn.Linear(context_width, num_outputs) for name in modalities})
        self._on_base = BASES[base]
        if base != "none" and self.task is not None:
            last = cast(nn.Linear, self.task[-1])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.verbaliser = verbaliser
        self.sign = nn.Linear(read_width, 1) if tells_sign else None
        self.prototypes = prototypes

    def forward(
        self,
        tokens: Tensor,
        last_text: Tensor,
        context_mean: Tensor | None = None,
        last_token: Tensor | None = None,
        parts: Mapping[str, Tensor] | None = None,
    ) -> Predictions:
        """``tokens`` [b x n x d], ``last_text`` [b x d], ``context_mean`` [b x d_av] (None: there is no context).

        ``last_token`` [b x d] is what the LM's own head reads, where the others are mixes of its layers; ``parts``:
        modality with a head of its own -> mean of its encoded frames [b x d_av].
        """
        dtype = self.text.weight.dtype
        last_token = tokens[:, -1] if last_token is None else last_token
        # Regression in fp32 whatever the LM runs in: polarity differences of 0.01 drown in bf16.
        with torch.autocast(tokens.device.type, enabled=False):
            tokens, last_text = tokens.to(dtype), last_text.to(dtype)
            context = [] if context_mean is None else [context_mean.to(dtype)]
            text = self.text(last_text)
            joint = torch.cat([self.mixing(tokens), last_text, *(context if self.task_reads_context else ())], dim=-1)
            own = [] if self.task is None else [self._on_base(self.task(joint), text)]
            verbalised = [] if self.verbaliser is None else [self.verbaliser(last_token.to(dtype))]
            task, *beside = own + verbalised
            return Predictions(
                task=task,
                fusion=self.fusion(tokens),
                text=text,
                av=None if self.av is None else self.av(*context),
                verbalised=beside[0] if beside else None,
                is_positive=None if self.sign is None else self.sign(joint),
                near=None if self.prototypes is None else self.prototypes(tokens.mean(dim=1)),
                steps=() if self.prototypes is None else self.prototypes.values,
                modalities={name: head((parts or {})[name].to(dtype)) for name, head in self.modalities.items()},
            )
