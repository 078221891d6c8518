"""How fusion tokens divide into groups: how many each has, and what is wrong with the settings that say so."""

from __future__ import annotations

import dataclasses
from typing import Any

from deepmlf_llm.config.rules import Rule, brief, is_integer, rule_problems
from deepmlf_llm.errors import ConfigError

POOLED, SEGREGATED = "pooled", "segregated"
JOINT = "the joint group"
COUNTS = Rule(
    lambda value: isinstance(value, list) and bool(value) and all(is_integer(count) and count >= 1 for count in value),
    "a list of integers >= 1",
)


def group_sizes(config: Any) -> tuple[int, ...]:
    """Tokens of each group: one group a modality, by name, then the joint one. Empty where all are pooled.

    ``num_fusion_tokens`` divides evenly, unless ``tokens_per_group`` says otherwise.

    Args:
        config: a :class:`~deepmlf_llm.config.method.DeepMLFConfig`.

    Raises:
        ConfigError: they do not divide so, or there is no modality.
    """
    if config.token_topology == POOLED:
        return ()
    if not config.modalities:
        raise ConfigError(
            "token_topology='segregated': groups of fusion tokens need a modality each, and there is none"
        )
    if problems := _division_problems(config):
        raise ConfigError("; ".join(problems))
    if config.tokens_per_group is not None:
        return tuple(config.tokens_per_group)
    groups = len(config.modalities) + 1
    return (config.num_fusion_tokens // groups,) * groups


def topology_problems(config: Any) -> list[str]:
    """What is wrong with a config's groups, one phrase each; those of modalities only where these are known."""
    return [*config.mixing_head.problems(), *_unused_head_problems(config), *_group_problems(config)]


def _unused_head_problems(config: Any) -> list[str]:
    head = config.mixing_head
    if config.token_topology != POOLED or list(rule_problems(head)):
        return []  # each setting has its own rule
    changed = [f.name for f in dataclasses.fields(head) if getattr(head, f.name) != f.default]
    return [
        f"mixing_head.{name}={brief(getattr(head, name))}: segregated groups meet in that head, and "
        "token_topology='pooled' has none; leave it out, or set token_topology to 'segregated'"
        for name in changed
    ]


def _group_problems(config: Any) -> list[str]:
    given = config.tokens_per_group
    if config.token_topology == POOLED and given is None:
        return []
    if config.token_topology == POOLED:
        return [
            f"tokens_per_group={brief(given)}: the fusion tokens are one group (token_topology='pooled'); leave it "
            "out, or set token_topology to 'segregated'"
        ]
    readable = config.token_topology == SEGREGATED and is_integer(config.num_fusion_tokens)
    if not readable or not (given is None or COUNTS.good(given)):
        return []  # each has its own rule
    found = _division_problems(config) if config.modalities else []
    if config.gca_queries != "tokens":
        found.append(
            f"gca_queries={brief(config.gca_queries)} with token_topology='segregated': a group of fusion tokens reads "
            "its own modality, and the text has none; set it to 'tokens', or the topology to 'pooled'"
        )
    return found


def _division_problems(config: Any) -> list[str]:
    n, given = config.num_fusion_tokens, config.tokens_per_group
    names = ", ".join([*config.modalities, JOINT])
    groups = len(config.modalities) + 1
    if given is None:
        even, rest = divmod(n, groups)
        if even and not rest:
            return []
        fits = groups * max(even + (rest > 0), 1)
        return [
            f"num_fusion_tokens={brief(n)} does not divide into {groups} groups ({names}), as "
            f"token_topology='segregated' asks for: {fits} would, or say how with tokens_per_group"
        ]
    found = []
    if len(given) != groups:
        found.append(f"tokens_per_group={brief(given)}: expected {groups} numbers, one for each of {names}")
    if sum(given) != n:
        found.append(f"tokens_per_group={brief(given)} makes {sum(given)} fusion tokens, num_fusion_tokens={brief(n)}")
    return found
