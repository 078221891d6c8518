"""Numbers that are not finite: found at their step, before the update, by all processes, and traced to a cause.

Inputs are looked at before the step, the parts of the loss and the gradient before the optimizer acts. What is said
then names the utterances, and answers a bad feature or label as such; only where inputs are finite does it name the
learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepmlf_llm.backbones.quantization import is_packed
from deepmlf_llm.errors import DataError, DeepMLFError, RunError

LARGE = 1e5
"""Beyond it a finite feature or label is suspected where a result is not finite; standardised ones rarely exceed 10."""
FEW = 6  # utterances or findings a message names
HEAD_OF = {
    **{"task": "polarity", "fusion": "fusion_polarity", "text": "text_polarity", "av": "av_polarity"},
    "verbalised": "verbalised_polarity",
}
"""Part of the loss -> the output [b] of the model that it judges."""


def broken_inputs(batch: Mapping[str, Tensor], names: Sequence[str]) -> list[tuple[int, str]]:
    """(row, name) of labels and features that hold a value that is not finite.

    Args:
        batch: ``labels`` [b], and ``<name>`` [b x t x d] for each name.
        names: modalities.
    """
    found = []
    for name in ("labels", *names):
        if name in batch:
            good = batch[name].isfinite().reshape(len(batch[name]), -1).all(dim=1)
            found += [(row, name) for row in (~good).nonzero().flatten().tolist()]
    return found


def name_of(dataset: Any, index: int) -> str:
    """An utterance for a message: its id, else its row."""
    identity = dataset[int(index)].get("id")
    return f"row {index}" if identity is None else repr(str(identity))


def some(names: Iterable[str]) -> str:
    """The first few, and how many more."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - FEW} more" if len(unique) > FEW else ""
    return ", ".join(unique[:FEW]) + more


def suspects(dataset: Any, indices: Iterable[int], modalities: Sequence[str]) -> list[str]:
    """Features and labels of these utterances that are not finite in 32 bits or larger than :data:`LARGE`, in words."""
    found = []
    for index in dict.fromkeys(indices):
        item = dataset[index]
        for name in ("label", *modalities):
            with np.errstate(over="ignore"):
                values = np.asarray([] if item.get(name) is None else item[name], dtype=np.float32)
            if not np.isfinite(values).all():
                found.append(f"{name} of {name_of(dataset, index)} holds values that are not finite in 32 bits")
            elif values.size and np.abs(values).max() > LARGE:
                found.append(f"{name} of {name_of(dataset, index)} reaches {np.abs(values).max():.3g}")
    return found


def said_by_all(messages: list[str]) -> list[str]:
    """What all processes have to say, the same on each; every process must call it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        everyone: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(everyone, messages)
        return list(dict.fromkeys(message for messages in everyone for message in messages))
    return messages


@dataclass
class _Batch:
    """What is remembered of a batch until its step ends."""

    finite: Tensor  # of each part of the loss [k]
    parts: list[str]
    rows: dict[str, Tensor]  # part -> whether its output is finite [b]
    indices: list[int]


class FiniteSteps:
    """Watches the steps of a run.

    Args:
        dataset: the training split.
        modalities: names.
        most_skipped: steps that may be left out because they are not finite.
    """

    def __init__(self, dataset: Any, modalities: Sequence[str], most_skipped: int = 0) -> None:
        self.dataset, self.modalities, self.most_skipped = dataset, list(modalities), most_skipped
        self.skipped = 0
        self._batches: list[_Batch] = []
        self.checked = -1

    def saw(self, losses: Mapping[str, Tensor], outputs: Any, indices: Sequence[int]) -> None:
        """Notes a batch; nothing waits for the device here."""
        finite = torch.stack([part.detach().isfinite().all() for part in losses.values()])
        rows = {}
        for part, head in HEAD_OF.items():
            if outputs.get(head) is not None:
                values = outputs[head].detach()
                rows[part] = values.isfinite().reshape(len(values), -1).all(dim=1)
        self._batches.append(_Batch(finite, list(losses), rows, list(indices)))

    def check(self, step: int, model: nn.Module, gradients: Mapping[str, Tensor]) -> str | None:
        """Before the update of a step, on every process; does nothing when it was called for this step before.

        Args:
            step: the first is 1.
            model: for what can be said about weights.
            gradients: name -> whether the gradient of that group is finite, a scalar.

        Returns:
            None, or why the step is to be left out: it is not finite, and some may be skipped yet.

        Raises:
            DataError: a feature or a label is at fault.
            RunError: the loss or the gradient is not finite for another reason.
        """
        if step == self.checked:
            return None
        self.checked = step
        batches, self._batches = self._batches, []
        if not batches:
            return None
        parts = batches[0].parts
        good = torch.stack([batch.finite for batch in batches]).all(dim=0)
        of_groups = [finite.reshape(1).to(good.device) for finite in gradients.values()]
        flags = torch.cat([good, *of_groups]).logical_not().float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        values = flags.tolist()
        if not any(values):
            return None
        bad_parts = [name for name, bad in zip(parts, values, strict=False) if bad]
        bad_groups = [name for name, bad in zip(gradients, values[len(parts) :], strict=True) if bad]
        error = self._explain(step, model, batches, bad_parts, bad_groups)
        if self.skipped >= self.most_skipped:
            raise error
        self.skipped += 1
        return f"{error}; left out ({self.skipped} of at most {self.most_skipped})"

    def _explain(
        self, step: int, model: nn.Module, batches: list[_Batch], parts: list[str], groups: list[str]
    ) -> DeepMLFError:
        if parts:
            what = f"step {step}: the loss is not finite ({', '.join(parts)})"
            guilty = _rows_at_fault(batches, parts)
        else:
            what = f"step {step}: the gradient of {', '.join(groups)} is not finite, the loss is"
            guilty = [index for batch in batches for index in batch.indices]
        all_of_step = [index for batch in batches for index in batch.indices]
        findings = said_by_all(suspects(self.dataset, guilty, self.modalities))
        findings = findings or said_by_all(suspects(self.dataset, all_of_step, self.modalities))
        utterances = said_by_all([name_of(self.dataset, index) for index in guilty])
        what += f", at the utterances {some(utterances)}" if utterances else ""
        if findings:
            return DataError(f"{what}; {some(findings)}: look at these features and labels")
        broken = said_by_all(_broken_weights(model))
        if broken:
            return RunError(f"{what}; the weights {some(broken)} of the base model are not finite: get it again")
        if step == 1:
            return RunError(
                f"{what}; features, labels and weights are sound and nothing is trained yet: the base model overflows "
                "in its dtype; try dtype=float32 or bf16=false"
            )
        return RunError(f"{what}; its features and labels are sound: the run diverged; lower learning_rate")


def _rows_at_fault(batches: list[_Batch], parts: list[str]) -> list[int]:
    """Utterances whose own output is not finite; where none stands out, all of the batches that have such a loss."""
    rows: list[int] = []
    for batch in batches:
        finite = dict(zip(batch.parts, batch.finite.tolist(), strict=True))
        bad = [part for part in parts if not finite[part]]
        own = {row for part in bad if part in batch.rows for row in (~batch.rows[part]).nonzero().flatten().tolist()}
        rows += [batch.indices[row] for row in sorted(own)] if own else batch.indices if bad else []
    return rows


def _broken_weights(model: nn.Module) -> list[str]:
    """Frozen weights that are not finite; under ZeRO-3 those of this process' share."""
    return [
        name.removeprefix("base_model.model.")
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
        and parameter.is_floating_point()
        and not is_packed(parameter)
        and not bool(getattr(parameter, "ds_tensor", parameter).isfinite().all())
    ]


def check_predictions(
    predictions: Sequence[Any], dataset: Any, order: Sequence[int], modalities: Sequence[str]
) -> None:
    """After an evaluation, the same on every process: all predictions are finite.

    Args:
        predictions: of each head [N], in the order of ``order``.
        dataset: of N utterances.
        order: their indices.
        modalities: names.

    Raises:
        DataError, RunError: some are not, because of a feature, or for another reason.
    """
    bad = np.zeros(len(order), dtype=bool)
    for values in predictions:
        bad |= ~np.isfinite(np.asarray(values).reshape(len(order), -1)).all(axis=1)
    if not bad.any():
        return
    indices = [order[row] for row in np.flatnonzero(bad).tolist()]
    what = f"evaluation: {len(indices)} of {len(order)} predictions are not finite, "
    what += f"at the utterances {some(name_of(dataset, index) for index in indices)}"
    if findings := suspects(dataset, indices, modalities):
        raise DataError(f"{what}; {some(findings)}: look at these features")
    raise RunError(f"{what}; their features are sound: the weights diverged; lower learning_rate")


def gradients_by_group(groups: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Group of the optimizer -> whether its gradients are finite, a scalar; one pass over them."""
    found: dict[str, Tensor] = {}
    for group in groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        if gradients:
            finite = nn.utils.get_total_norm(gradients).isfinite()
            role = str(group.get("name", "weights")).partition("/")[0]
            found[role] = finite & found.get(role, finite)
    return found


def is_finite_norm(norm: Any) -> bool:
    """Of a gradient, as DeepSpeed gives it: -1 and infinity stand for one that is not."""
    return norm is None or (math.isfinite(float(norm)) and float(norm) >= 0)
