"""How fusion tokens divide into groups, and what is refused."""

from __future__ import annotations

import pytest

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.topology import group_sizes
from deepmlf_llm.errors import ConfigError

TWO = {"vision": {"dim": 5}, "audio": {"dim": 3}}


def test_pooled_is_the_default_and_one_group():
    config = DeepMLFConfig(modalities=TWO)
    assert (config.token_topology, config.tokens_per_group, group_sizes(config)) == ("pooled", None, ())


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"num_fusion_tokens": 12, "modalities": TWO}, (4, 4, 4)),
        ({"num_fusion_tokens": 8, "tokens_per_group": [2, 1, 5], "modalities": TWO}, (2, 1, 5)),
        ({"num_fusion_tokens": 8, "modalities": {"audio": {"dim": 3}}}, (4, 4)),  # one modality, and the joint group
        ({"num_fusion_tokens": 8, "modalities": {name: {"dim": 1} for name in "abc"}}, (2, 2, 2, 2)),
    ],
)
def test_tokens_divide_evenly_or_as_told(settings, sizes):
    config = DeepMLFConfig(token_topology="segregated", **settings)
    assert group_sizes(config) == sizes
    assert group_sizes(DeepMLFConfig.from_dict(config.to_dict())) == sizes


GROUPS = "audio, vision, the joint group"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_fusion_tokens": 8},
            rf"num_fusion_tokens=8 does not divide into 3 groups \({GROUPS}\).*: 9 would, or say how with tokens_per",
        ),
        ({"num_fusion_tokens": 2}, "num_fusion_tokens=2 does not divide into 3 groups .*: 3 would"),
        (
            {"num_fusion_tokens": 8, "tokens_per_group": [4, 4]},
            rf"tokens_per_group=\[4, 4\]: expected 3 numbers, one for each of {GROUPS}",
        ),
        (
            {"num_fusion_tokens": 8, "tokens_per_group": [4, 4, 4]},
            r"tokens_per_group=\[4, 4, 4\] makes 12 fusion tokens, num_fusion_tokens=8",
        ),
        ({"tokens_per_group": [4, 0, 4]}, r"tokens_per_group=\[4, 0, 4\]: expected a list of integers >= 1, or null"),
        (
            {"token_topology": "pooled", "tokens_per_group": [2, 2, 4]},
            "tokens_per_group=.*: the fusion tokens are one group",
        ),
        ({"token_topology": "apart"}, "token_topology='apart': expected one of 'pooled', 'segregated'"),
        ({"gca_queries": "both"}, "gca_queries='both' with token_topology='segregated': .* the text has none"),
        (
            {"token_topology": "pooled", "mixing_head": {"num_layers": 2, "dropout": 0.2}},
            "mixing_head.num_layers=2: segregated groups meet in that head.*; mixing_head.dropout=0.2: ",
        ),
        ({"mixing_head": {"width": 10, "num_heads": 4}}, "mixing_head.width=10 is not a multiple of num_heads=4"),
    ],
)
def test_what_does_not_divide_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DeepMLFConfig(**{"token_topology": "segregated", "num_fusion_tokens": 9, "modalities": TWO, **settings})


def test_without_a_modality_there_are_no_groups():
    config = DeepMLFConfig(token_topology="segregated")  # as a run has it before it has met its data
    with pytest.raises(ConfigError, match="groups of fusion tokens need a modality each, and there is none"):
        group_sizes(config)
