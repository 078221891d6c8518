"""What a prediction is read from: the task head, the LM's own words for the steps of the scale, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepmlf_llm.config.rules import Rule, brief, is_integer, is_number
from deepmlf_llm.tasks.registry import regression_of

NUM_STEPS = 7
"""Steps of the scale where nobody has named them: of [-3, 3] the integers, as the field's Acc7 has them."""

READOUTS = ("heads", "verbalised", "both")
_MOST = 1000


def _labelled(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value maps two labels or more to different ``good`` values."""

    def is_good(value: Any) -> bool:
        if not isinstance(value, dict) or not 2 <= len(value) <= _MOST:
            return False
        named = all(isinstance(label, str) and label.strip() for label in value)
        return named and all(map(good, value.values())) and len(set(value.values())) == len(value)

    return is_good


STEPS = Rule(
    _labelled(is_number),
    "a mapping of two labels or more, in quotes, to different polarities, e.g. {'bad': -3, 'good': 3}",
)
TOKEN_IDS = Rule(
    _labelled(lambda index: is_integer(index) and index >= 0), "a mapping of two labels or more to different token ids"
)


def scale_steps(config: Any) -> dict[str, float]:
    """Label -> polarity of each step of an adapter's scale, ascending: its own, or "1" to "7" evenly over the range of
    its data set's labels.

    Args:
        config: a :class:`~deepmlf_llm.config.DeepMLFConfig`.
    """
    given = config.verbalised_steps
    if given is None:
        given = {
            str(i + 1): value for i, value in enumerate(regression_of(config.dataset, config.task).steps(NUM_STEPS))
        }
    return dict(sorted(given.items(), key=lambda step: step[1]))


def readout_problems(config: Any) -> list[str]:
    """What is wrong with the settings of the readout together, one phrase each."""
    found = []
    if config.readout != "heads" and config.num_outputs != 1:
        found.append(
            f"readout={brief(config.readout)} predicts one polarity; "
            f"num_outputs={brief(config.num_outputs)} needs 'heads'"
        )
    if config.readout == "verbalised" and config.readout_layers == "mix":
        found.append("readout_layers='mix' is what the heads read, and readout='verbalised' predicts without them")
    if config.readout != "heads" and config.truncate_lm is True:
        found.append(f"readout={brief(config.readout)} reads the LM's last layers; truncate_lm=true runs none")
    if config.readout == "verbalised" and config.token_topology == "segregated":
        found.append(
            "token_topology='segregated' has groups that meet in the task head, and readout='verbalised' has none"
        )
    if config.readout == "verbalised" and config.head_base != "none":
        found.append(f"head_base={brief(config.head_base)} is of the task head, and readout='verbalised' has none")
    if config.readout == "verbalised" and config.head_reads_av is False:
        found.append("head_reads_av=false is of the task head, and readout='verbalised' has none")
    for name in ("lambda_polarity", "lambda_prototypes"):
        weight = getattr(config.objective, name)
        if is_number(weight) and weight > 0 and config.num_outputs != 1:
            found.append(f"objective.{name} is of one polarity; num_outputs={brief(config.num_outputs)} needs 0")
    steps, ids = config.verbalised_steps, config.verbalised_ids
    if config.readout == "heads" and STEPS.good(steps):
        found.append(f"verbalised_steps={brief(steps)}: readout='heads' says no steps; leave it out or choose 'both'")
    if TOKEN_IDS.good(ids) and (steps is None or STEPS.good(steps)):
        labels = {str(i + 1) for i in range(NUM_STEPS)} if steps is None else set(steps)
        if labels != set(ids):
            found.append(f"verbalised_ids={brief(ids)}: expected the ids of the steps {', '.join(sorted(labels))}")
    return found
