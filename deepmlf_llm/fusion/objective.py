"""The loss and its parts: ``L = L_task + lambda_f L_fusion + lambda_av L_av + lambda_t L_text + gamma L_LM``.

DeepMLF section 3 (arXiv 2504.11082). The first four regress the polarity; L_LM is next-token cross-entropy on the
transcript: each real token but the last predicts the next real one, mean over all of the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepmlf_llm.config.method import ObjectiveConfig
from deepmlf_llm.modules.heads import Predictions

LOGIT_CHUNKS = 4  # parts of the batch whose logits are alive in turn; a batch of 32 MOSI texts makes 100 MB each
REGRESSION = {"l1": torch.abs, "mse": torch.square}


def next_token_loss(logits: Callable[[Tensor], Tensor], states: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    """L_LM: mean cross-entropy over real tokens that have a real successor; 0 if there are none.

    Logits are made at those positions only, a chunk at a time, and again in the backward pass instead of being kept.
    The number of chunks is fixed: ranks whose batches differ must call the output embeddings equally often (ZeRO-3).

    Args:
        logits: normalised states [k x d] -> logits [k x vocabulary].
        states: of the text, after the final norm [b x l x d].
        input_ids: [b x l].
        mask: 1 where a token is real [b x l].
    """
    predicts = (mask[:, :-1] * mask[:, 1:]).bool()
    hidden, targets = states[:, :-1][predicts], input_ids[:, 1:][predicts]

    def cross_entropy(chunk: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits(chunk).float(), target, reduction="sum")

    total = states.new_zeros((), dtype=torch.float32)
    for chunk, target in zip(hidden.tensor_split(LOGIT_CHUNKS), targets.tensor_split(LOGIT_CHUNKS), strict=True):
        total = total + checkpoint(cross_entropy, chunk, target, use_reentrant=False)
    return total / predicts.sum().clamp(min=1)


def combine_losses(
    config: ObjectiveConfig,
    predictions: Predictions,
    labels: Tensor,
    av_present: Tensor,
    lm_loss: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss and its unweighted parts, fp32 scalars.

    Notation used for tensor shapes: b batch size, n fusion tokens, o outputs.

    Args:
        predictions: see :class:`Predictions`.
        labels: polarity [b], or [b x o].
        av_present: True where any frame is real [b]; L_av is the mean over those rows (the AV head has nothing to read
            in the others).
        lm_loss: L_LM, where it is computed.
    """
    error = REGRESSION[config.loss]
    target = labels.to(predictions.task.dtype).reshape(labels.shape[0], -1)  # [b x o]
    av_error = error(predictions.av - target).mean(dim=-1) * av_present
    parts = {
        "task": error(predictions.task - target).mean(),
        "fusion": error(predictions.fusion - target[:, None]).mean(),
        "av": av_error.sum() / av_present.sum().clamp(min=1),
        "text": error(predictions.text - target).mean(),
    }
    weights = {"task": 1.0, "fusion": config.lambda_fusion, "av": config.lambda_av, "text": config.lambda_text}
    if lm_loss is not None:
        parts["lm"], weights["lm"] = lm_loss, config.gamma
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return total, parts
