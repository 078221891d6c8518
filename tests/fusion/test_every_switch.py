"""Every setting of the method does something in a training step, and its default, given, is what it is ungiven.

Whether a setting does what it says is tested where it is built; here none can be read from a file and go nowhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from deepmlf_llm.config.method_settings import MethodSettings
from deepmlf_llm.config.sections import SECTIONS
from tests.families import losses_and_gradients, randomise, tiny_batch, tiny_config, tiny_family

BOTH = {
    "readout": "both",
    "verbalised_steps": {"bad": -3.0, "good": 2.0},
    "verbalised_ids": {"bad": 41, "good": 90},
}
GROUPS = {"token_topology": "segregated"}
SEQAUG = {"seqaug": {"p_apply": 1.0, "p_feat": 0.5, "av_p_apply": 1.0, "av_p_feat": 0.5}}
SWITCHES: dict[str, tuple[Any, dict[str, Any]]] = {  # setting -> another value, what stands beside it
    "r": (2, {}),
    "num_fusion_tokens": (4, {}),
    "fusion_token_init": ("lm", {}),
    "freeze_fusion_tokens": (True, {}),
    "fusion_entry": ("first_block", {}),
    "truncate_lm": (True, {"fusion_layers": [1, 2]}),
    "token_topology": ("segregated", {}),
    "tokens_per_group": ([1, 1, 4], {**GROUPS, "num_fusion_tokens": 6}),
    "fusion_layers": ([1, 2], {}),
    "ffw_scope": ("fusion", {}),
    "ffw_weights": ("copy", {}),
    "ffw_lora_r": (3, {}),
    "ffw_lora_alpha": (2.0, {}),
    "ffw_lora_dropout": (0.5, {}),
    "ffw_dropout": (0.5, {}),
    "gate": ("tanh", {}),
    "gate_init": (-2.0, {}),
    "gca_gate_init": (-2.0, {}),
    "gate_per": ("channel", {}),
    "norm_init": ("fresh", {}),
    "gca_queries": ("both", {}),
    "gca_heads": (2, {}),
    "gca_head_width": (4, {}),
    "gca_dropout": (0.5, {}),
    "freeze_av_encoder": (True, {}),
    "head_width": (6, {}),
    "head_norm": ("layer", {}),
    "head_dropout": (0.5, {}),
    "head_base": ("text", {}),
    "head_reads_av": (False, {}),
    "readout": ("verbalised", BOTH),
    "verbalised_steps": ({"bad": -3.0, "good": 1.0}, BOTH),
    "verbalised_ids": ({"bad": 41, "good": 7}, BOTH),
    "readout_layers": ("mix", {}),
    "unimodal_targets": (["A", "V"], {}),
    "av_encoder.width": (6, {}),
    "av_encoder.num_layers": (1, {}),
    "av_encoder.num_heads": (2, {}),
    "av_encoder.ffw_width": (8, {}),
    "av_encoder.dropout": (0.5, {}),
    "av_encoder.input_dropout": (0.5, {}),
    "av_encoder.max_frames": (2, {}),
    "av_encoder.pool": ("after", {}),
    "av_encoder.feature_norm": ("batch", {}),
    "mixing_head.width": (8, GROUPS),
    "mixing_head.num_layers": (2, GROUPS),
    "mixing_head.num_heads": (2, GROUPS),
    "mixing_head.ffw_width": (16, GROUPS),
    "mixing_head.dropout": (0.5, GROUPS),
    "objective.lambda_fusion": (0.1, {}),
    "objective.lambda_av": (0.1, {}),
    "objective.lambda_text": (0.1, {}),
    "objective.gamma": (0.5, {}),
    "objective.loss": ("mse", {}),
    "objective.lambda_polarity": (0.05, {}),
    "objective.lambda_prototypes": (0.1, {}),
    "seqaug.p_apply": (0.0, SEQAUG),
    "seqaug.p_feat": (0.0, SEQAUG),
    "seqaug.av_p_apply": (0.0, SEQAUG),
    "seqaug.av_p_feat": (0.0, SEQAUG),
    "seqaug.embedding_dropout": (0.5, {}),
    "seqaug.embedding_noise": (0.5, {}),
}
ELSEWHERE = {  # setting -> where it is tested, for it needs more than a step of a tiny model
    "dequantize_copy": "backbones/test_quantization.py",
    "modalities": "fusion/test_designs.py",
    "num_outputs": "fusion/test_task_loss.py",
    "dataset": "training/test_classification.py",
    "task": "training/test_classification.py",
    "text.case": "data/test_prepare.py",
    "text.max_tokens": "data/test_collate.py",
    "text.template": "data/test_collate.py",
    "objective.unimodal_labels": "training/test_unimodal.py",
    "objective.class_weights": "fusion/test_task_loss.py",
}


def with_value(settings: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The settings with one of them changed, in its section."""
    section, _, name = path.rpartition(".")
    if not section:
        return {**settings, name: value}
    own = tiny_config().av_encoder if section == "av_encoder" else SECTIONS[section]()
    return {**settings, section: {**dataclasses.asdict(own), **settings.get(section, {}), name: value}}


def step(settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Losses, predictions and gradients of a training step of a model that settings made."""
    from deepmlf_llm.model.peft_model import DeepMLFModel

    torch.manual_seed(1)
    model = randomise(DeepMLFModel(tiny_family("llama"), tiny_config(**settings))).train()
    torch.manual_seed(0)
    labels = {"unimodal_labels": torch.tensor([[0.5, -2.0, 1.0]] * 3)} if settings.get("unimodal_targets") else {}
    found, gradients = losses_and_gradients(model, **tiny_batch(**labels))
    return {name: x.detach() for name, x in {**found, **gradients}.items() if x is not None}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        x.shape == other[name].shape and torch.equal(x, other[name]) for name, x in one.items()
    )


@pytest.mark.parametrize("path", SWITCHES)
def test_it_does_something_and_its_default_nothing(path: str) -> None:
    value, beside = SWITCHES[path]
    default: Any = tiny_config(**beside)
    for part in path.split("."):
        default = getattr(default, part)
    plain = step(beside)
    assert same(step(with_value(beside, path, default)), plain)
    assert not same(step(with_value(beside, path, value)), plain)


def test_no_setting_is_forgotten() -> None:
    own = {name for name in MethodSettings.__annotations__ if name not in SECTIONS}
    own |= {f"{name}.{field.name}" for name, section in SECTIONS.items() for field in dataclasses.fields(section)}
    assert own == SWITCHES.keys() | ELSEWHERE.keys()
    assert not SWITCHES.keys() & ELSEWHERE.keys()
