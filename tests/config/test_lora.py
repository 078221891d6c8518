"""PEFT's LoRA settings: those that DeepMLF serves are checked, the others are refused by name."""

from __future__ import annotations

import sys

import pytest

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError

MODALITIES = {"audio": {"dim": 5}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_lora_weights", "pissa"),  # changes the base's weights
        ("bias", "all"),  # trains the base's biases
        ("modules_to_save", ["lm_head"]),  # trains parts of the base
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("target_parameters", ["x"]),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
        ("auto_mapping", {"base_model_class": "X", "parent_library": "os"}),
        ("lora_alpha", 0),
        ("lora_alpha", "16"),
        ("lora_dropout", 1.0),
        ("lora_dropout", {}),
        ("use_dora", "yes"),
        ("target_modules", [None]),
        ("target_modules", "q_(proj"),
        ("target_modules", r".*\.(q|v)_proj"),
        ("target_modules", "(a+)+$"),
        ("target_modules", ["q_proj", "(a+)+$"]),
        ("target_modules", ["x" * 201]),
        ("target_modules", [f"q{i}" for i in range(5000)]),
        ("exclude_modules", "(a|a)*$"),
        ("layers_pattern", ["(a+)+$"]),
        ("layers_pattern", "(a+)+$"),
        ("rank_pattern", {"(a+)+$": 2}),
        ("alpha_pattern", {"(.*)*x": 2.0}),
        ("exclude_modules", 3),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", []),
        ("layers_to_transform", "1"),
        ("task_type", "SEQ_CLS"),
    ],
)
def test_what_is_not_served_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        DeepMLFConfig(**{"r": 4, "modalities": MODALITIES, field: value})


def test_a_config_imports_no_module_by_its_name():
    with pytest.raises(ConfigError, match="megatron_core='antigravity'"):
        DeepMLFConfig(r=4, modalities=MODALITIES, megatron_core="antigravity", megatron_config={})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear", "exclude_modules": ["lm_head"]},
        {"target_modules": ["self_attn.q_proj", "layers.0.mlp.up_proj"], "use_rslora": True},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4.0}, "init_lora_weights": "gaussian"},
        {"use_dora": True, "lora_dropout": 0.1, "lora_alpha": 32},
        {"fan_in_fan_out": True},
    ],
)
def test_what_is_served_survives_a_round_trip(settings):
    config = DeepMLFConfig(r=4, modalities=MODALITIES, **settings)
    again = DeepMLFConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
