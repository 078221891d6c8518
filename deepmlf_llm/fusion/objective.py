"""The loss and its terms: ``L = L_task + lambda_f L_fusion + lambda_av L_av + lambda_t L_text + gamma L_LM``.

DeepMLF section 3 (arXiv 2504.11082). The first four judge the heads by the label: a polarity, or classes
(:mod:`~deepmlf_llm.fusion.task_loss`). L_LM is next-token cross-entropy on the transcript: each real token but the last
predicts the next real one, mean over all of the batch. Beyond the paper:

- ``readout="verbalised"``: L_task is of the polarity that the LM predicts (:mod:`~deepmlf_llm.modules.verbaliser`);
  ``"both"``: L_verbalised, of the same weight, beside that of the task head;
- lambda_polarity L_polarity: binary cross-entropy of positive against negative, over the utterances whose label is not
  0, from what the task head reads (MGSI, weight .05);
- lambda_prototypes L_prototypes: cross-entropy with soft ordinal targets (:mod:`~deepmlf_llm.modules.prototypes`).

Every term is a mean over what it counts: a sum over this batch, divided by a count. A mean of means is not the mean
where batches differ in those counts, so a step over several batches and processes divides every batch's sums by the
counts of the whole step (:func:`term_counts` of all its batches, added up). It then has exactly the gradient of one
large batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepmlf_llm.config.sections import ObjectiveConfig
from deepmlf_llm.fusion.task_loss import TaskLoss, distance
from deepmlf_llm.fusion.unimodal import Unimodal
from deepmlf_llm.modules.heads import Predictions
from deepmlf_llm.modules.precision import at_least_fp32
from deepmlf_llm.modules.prototypes import ordinal_targets

LOGIT_CHUNKS = 4  # parts of the batch whose logits are alive in turn; a batch of 32 MOSI texts makes 100 MB each


@dataclass(frozen=True)
class LossTerm:
    """One part of the loss.

    Args:
        name: in logs and in ``output.losses``.
        sum: over what it counts in this batch, scalar.
        count: how many that are, scalar.
        weight: in the loss.
    """

    name: str
    sum: Tensor
    count: Tensor
    weight: float

    def mean(self, count: Tensor | None = None) -> Tensor:
        """The sum over ``count``, by default its own; 0 where there is nothing to count."""
        count = self.count if count is None else count
        return self.sum / torch.where(count > 0, count, 1).to(self.sum.dtype)


def combine(terms: Iterable[LossTerm], counts: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss and its unweighted parts, scalars.

    Args:
        terms: of this batch.
        counts: term -> what its sum is divided by; default: each term's own count, which gives means over the batch.
    """
    terms = list(terms)
    parts = {term.name: term.mean(None if counts is None else counts[term.name]) for term in terms}
    return torch.stack([term.weight * parts[term.name] for term in terms]).sum(), parts


def term_counts(mask: Tensor, present: Tensor, labels: Tensor, unimodal: Unimodal | None = None) -> dict[str, Tensor]:
    """Term -> what it is a mean over, known from the batch alone: whole numbers, scalars.

    Args:
        mask: 1 where a text token is real [b x l].
        present: True where any audio or vision frame is real [b].
        labels: polarity [b], or [b x o].
        unimodal: labels of one modality alone, if heads learn from them.
    """
    utterances = torch.full_like(present.sum(), len(present))
    return {
        "task": utterances,
        "fusion": utterances,
        "av": present.sum(),  # the AV head has nothing to read in the others
        "text": utterances,
        "verbalised": utterances,
        "polarity": takes_sides(labels).sum(),
        "prototypes": utterances,
        "lm": predicts_next(mask).sum(),
        **({} if unimodal is None else unimodal.counts()),
    }


def loss_terms(
    config: ObjectiveConfig,
    predictions: Predictions,
    labels: Tensor,
    mask: Tensor,
    present: Tensor,
    next_token: Callable[[], Tensor] | None = None,
    head_labels: Mapping[str, Tensor] | None = None,
    loss: TaskLoss | None = None,
    unimodal: Unimodal | None = None,
) -> list[LossTerm]:
    """The terms of a batch; fp32 (fp64 where the heads are).

    Notation used for tensor shapes: b batch size, l text tokens, o outputs.

    Args:
        predictions: see :class:`Predictions`.
        labels: polarity [b], or [b x o]; classes as :mod:`~deepmlf_llm.fusion.task_loss` takes them.
        mask, present: see :func:`term_counts`.
        next_token: gives the sum of L_LM over the batch (:func:`next_token_sum`); None: it is not computed.
        head_labels: term -> labels of its own, in the place of ``labels``.
        loss: of the task (:func:`~deepmlf_llm.fusion.task_loss.task_loss`); default: the regression loss.
        unimodal: labels of one modality alone, for the heads that learn from them.
    """
    alone = unimodal or Unimodal({}, {})
    judge = _Judge(loss or distance(config.loss), labels, head_labels or {}, alone)
    counts = term_counts(mask, present, labels, unimodal)
    terms = [
        LossTerm("task", judge.total("task", predictions.task), counts["task"], 1.0),
        LossTerm("fusion", judge.total("fusion", predictions.fusion), counts["fusion"], config.lambda_fusion),
    ]
    if predictions.av is not None:
        terms.append(LossTerm("av", judge.total("av", predictions.av, present), counts["av"], config.lambda_av))
    terms.append(LossTerm("text", judge.total("text", predictions.text), counts["text"], config.lambda_text))
    for name, found in predictions.modalities.items():
        if name in alone.rated:
            terms.append(LossTerm(name, judge.total(name, found, present), counts[name], config.lambda_av))
    if predictions.verbalised is not None:
        verbalised = judge.total("verbalised", predictions.verbalised)
        terms.append(LossTerm("verbalised", verbalised, counts["verbalised"], 1.0))
    terms += _auxiliary_terms(config, predictions, labels, counts)
    if next_token is not None:
        terms.append(LossTerm("lm", next_token(), counts["lm"], config.gamma))
    return terms


@dataclass(frozen=True)
class _Judge:
    """What outputs cost, each term by the labels that it learns from.

    Args:
        loss: of outputs [b x .. x o] and labels: of each utterance [b], a mean over what it has.
        labels: of all terms without their own.
        head_labels: term -> labels in the place of those.
        alone: labels of one modality alone, in the place of both.
    """

    loss: TaskLoss
    labels: Tensor
    head_labels: Mapping[str, Tensor]
    alone: Unimodal

    def total(self, term: str, found: Tensor, counted: Tensor | None = None) -> Tensor:
        """Sum over utterances: those with a label of this term's modality alone, where it learns from such; else those
        ``counted`` [b], by default all."""
        if term in self.alone.rated:
            return (self.loss(found, self.alone.labels[term]) * self.alone.rated[term]).sum()
        errors = self.loss(found, self.head_labels.get(term, self.labels))
        return errors.sum() if counted is None else (errors * counted).sum()


def _auxiliary_terms(
    config: ObjectiveConfig, predictions: Predictions, labels: Tensor, counts: Mapping[str, Tensor]
) -> list[LossTerm]:
    """L_polarity and L_prototypes, where they are wanted."""
    polarity = labels.to(predictions.task.dtype).reshape(len(labels), -1)[:, 0]
    terms = []
    if predictions.is_positive is not None:
        positive = (polarity > 0).to(polarity.dtype)
        wrong = F.binary_cross_entropy_with_logits(predictions.is_positive[:, 0], positive, reduction="none")
        of_sides = (wrong * takes_sides(labels)).sum()
        terms.append(LossTerm("polarity", of_sides, counts["polarity"], config.lambda_polarity))
    if predictions.near is not None:
        far = -(ordinal_targets(polarity, predictions.steps) * predictions.near).sum()
        terms.append(LossTerm("prototypes", far, counts["prototypes"], config.lambda_prototypes))
    return terms


def takes_sides(labels: Tensor) -> Tensor:
    """True where the label is positive or negative, not 0 [b]."""
    return labels.reshape(len(labels), -1)[:, 0] != 0


def predicts_next(mask: Tensor) -> Tensor:
    """True where a real token has a real successor [b x (l - 1)]."""
    return (mask[:, :-1] * mask[:, 1:]).bool()


def next_token_sum(logits: Callable[[Tensor], Tensor], states: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Sum of L_LM: cross-entropy over real tokens that have a real successor; 0 if there are none.

    Logits are made at those positions only, a chunk at a time, and again in the backward pass instead of being kept.
    The number of chunks is fixed: ranks whose batches differ must call the output embeddings equally often (ZeRO-3).

    Args:
        logits: normalised states [k x d] -> logits [k x vocabulary].
        states: of the text, after the final norm [b x l x d].
        input_ids: [b x l].
        mask: 1 where a token is real [b x l].
    """
    predicts = predicts_next(mask)
    hidden, targets = states[:, :-1][predicts], input_ids[:, 1:][predicts]

    def cross_entropy(chunk: Tensor, target: Tensor) -> Tensor:
        scores = logits(chunk)
        return F.cross_entropy(scores.to(at_least_fp32(scores)), target, reduction="sum")

    total = states.new_zeros((), dtype=at_least_fp32(states))
    for chunk, target in zip(hidden.tensor_split(LOGIT_CHUNKS), targets.tensor_split(LOGIT_CHUNKS), strict=True):
        total = total + checkpoint(cross_entropy, chunk, target, use_reentrant=False)
    return total
