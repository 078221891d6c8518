"""Mirrors ``deepmlf_llm/planning/flops.py``: against what torch itself counts while a step runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.modules import av_encoder, fusion_stack
from deepmlf_llm.planning.flops import StepGeometry, step_flops

B, T, FRAMES = 4, 15, {"audio": 26, "vision": 19}
DIMS = {"audio": 16, "vision": 20}


@pytest.fixture(autouse=True)
def keys_and_values_are_made(monkeypatch):
    """As they are counted, and as a GPU makes them; a CPU may need less. Nor are maps of attention kept."""
    monkeypatch.setattr(fusion_stack, "absorbing_takes_less", lambda *sizes: False)
    monkeypatch.setattr(av_encoder, "KEPT_ELEMENTS", 0)


def build(**settings) -> DeepMLFModel:
    modalities = {name: {"dim": dim} for name, dim in DIMS.items()}
    base = load_base_model("tiny-llama", attn_implementation="eager")
    ids = {"verbalised_ids": {str(i): i for i in range(1, 8)}} if "readout" in settings else {}
    given = {"num_fusion_tokens": 8, "modalities": modalities, **ids, **settings}
    return DeepMLFModel(base, DeepMLFConfig(**given)).train()


def batch(modalities=tuple(DIMS)) -> dict[str, torch.Tensor]:
    features = {name: torch.randn(B, FRAMES[name], DIMS[name]) for name in modalities}
    return {"input_ids": torch.randint(3, 250, (B, T)), "labels": torch.zeros(B), **features}


@pytest.mark.parametrize(
    "settings",
    [
        {"ffw_scope": "fusion"},
        {"ffw_scope": "joint"},
        {"ffw_scope": "joint", "r": 4},
        {"ffw_scope": "joint", "objective": {"gamma": 1.0}},
        {"ffw_scope": "fusion", "ffw_weights": "copy"},
        {"ffw_scope": "fusion", "av_encoder": {"pool": "before", "max_frames": 9}},
        {"token_topology": "segregated", "num_fusion_tokens": 9, "mixing_head": {"num_layers": 2}},
        {"readout": "both", "objective": {"lambda_polarity": 1.0, "lambda_prototypes": 1.0}},
        {"readout": "verbalised"},
        {"ffw_scope": "fusion", "av_encoder": {"pool": "after", "max_frames": 9}},
        {"ffw_scope": "none"},
        {"ffw_scope": "fusion", "gca_queries": "text"},
        {"ffw_scope": "none", "gca_queries": "both"},
        {"ffw_scope": "joint", "modalities": {}},
        {"ffw_scope": "fusion", "modalities": {}},
        {"ffw_scope": "fusion", "fusion_entry": "first_block"},
        {"ffw_scope": "joint", "fusion_entry": "first_block", "r": 4},
        {"ffw_scope": "joint", "freeze_fusion_tokens": True},
        {"ffw_scope": "fusion", "fusion_layers": [1, 2], "truncate_lm": True},
    ],
    ids=str,
)
def test_agrees_with_what_torch_counts(settings):
    """Within 2 %: some gradients that we count, nobody needs (of features, of the last norm's neighbours)."""
    model = build(**{"fusion_layers": "even:2", **settings})
    rows = batch(model.deepmlf_config.modalities)
    with FlopCounterMode(display=False) as counted:
        model(**rows).loss.backward()
    assert step_flops(model, StepGeometry(B, T, FRAMES), False) == pytest.approx(counted.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_cached_text_costs_nothing(frozen):
    model = build(fusion_layers="even:2", ffw_scope="fusion", freeze_fusion_tokens=frozen)
    model.enable_text_cache("memory")
    rows = batch()
    model.build_text_cache(rows["input_ids"].tolist())
    model(**rows)  # frozen tokens are kept once a text was met
    with FlopCounterMode(display=False) as counted:
        model(**rows).loss.backward()
    assert step_flops(model, StepGeometry(B, T, FRAMES), True) == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_grows_with_what_costs():
    geometry = StepGeometry(B, T, FRAMES)

    def flops(**settings) -> int:
        return step_flops(build(**settings), geometry, True)

    two = flops(fusion_layers="even:2", ffw_scope="fusion")
    assert flops(fusion_layers="even:4", ffw_scope="fusion") > two
    assert flops(fusion_layers="even:2", ffw_scope="joint") > two
    assert step_flops(build(fusion_layers="even:2", ffw_scope="fusion"), geometry, False) > two
    twice = StepGeometry(2 * B, T, FRAMES)
    assert step_flops(build(fusion_layers="even:2", ffw_scope="fusion"), twice, True) == 2 * two
