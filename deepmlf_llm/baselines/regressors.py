"""The two baselines that are trained by gradient: LoRA on the LM, and features added to its frozen text state."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor, nn

from deepmlf_llm.backbones import Decoder, run_layers


class TextRegressor(nn.Module):
    """A language model with a regression head on its last token: the text alone.

    Notation used for tensor shapes: b batch, l tokens, d width of the LM.

    Args:
        lm: a causal LM, with PEFT's LoRA on it.
        start: polarity that the head begins with.
    """

    def __init__(self, lm: PeftModel, start: float = 0.0) -> None:
        super().__init__()
        self.lm = lm
        self.decoder = Decoder(lm.get_base_model())
        self.head = _head(self.decoder.width, start)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Polarity [b], and with labels [b] its mean absolute error.

        Args:
            input_ids, attention_mask: [b x l], padded on the left.
            labels: polarity [b].
        """
        states = run_layers(self.decoder, self.decoder.embeddings(input_ids), attention_mask)
        return _with_loss(self.head(states[:, -1].float()).squeeze(-1), labels)


class PooledFusion(nn.Module):
    """An MLP on pooled audio and vision, added to the pooled text state of a frozen LM, and a regression head.

    Notation used for tensor shapes: b batch, d width of the text state, m modalities, d_m the width of one.

    Args:
        width: d.
        dims: d_m of each modality.
        hidden: width of the MLP.
        dropout: probability with which an utterance loses a modality, in training.
        start: polarity that the head begins with.
    """

    def __init__(self, width: int, dims: list[int], hidden: int, dropout: float, start: float = 0.0) -> None:
        super().__init__()
        self.dims, self.dropout = list(dims), dropout
        self.mlp = nn.Sequential(nn.Linear(sum(dims), hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, width))
        self.head = _head(width, start)

    def forward(self, text: Tensor, pooled: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Polarity [b], and with labels [b] its mean absolute error.

        Args:
            text: standardised text states [b x d].
            pooled: standardised means over frames, all modalities side by side [b x sum of d_m]; 0 where absent.
            labels: polarity [b].
        """
        if self.training and self.dropout:
            kept = torch.rand(len(pooled), len(self.dims), device=pooled.device) >= self.dropout
            pooled = pooled * kept.repeat_interleave(torch.tensor(self.dims, device=pooled.device), dim=1)
        return _with_loss(self.head(text + self.mlp(pooled)).squeeze(-1), labels)


def _head(width: int, start: float) -> nn.Linear:
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)  # the first prediction is the constant one
    nn.init.constant_(head.bias, start)
    return head


def _with_loss(polarity: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    if labels is None:
        return {"polarity": polarity}
    return {"loss": (polarity - labels).abs().mean(), "polarity": polarity}
