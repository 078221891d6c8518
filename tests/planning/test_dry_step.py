"""Mirrors ``deepmlf_llm/planning/dry_step.py``: against what PyTorch's allocator gives out in a real step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.modules import attention_kernels, av_encoder, context_reading
from deepmlf_llm.planning.dry_step import DryModel, Step
from deepmlf_llm.planning.geometries import planned_shape
from deepmlf_llm.planning.live_bytes import LiveBytes

B, T, FRAMES, DIMS = 6, 24, {"audio": 40, "vision": 30}, {"audio": 16, "vision": 20}
JOINT, FUSION = {"ffw_scope": "joint"}, {"ffw_scope": "fusion"}


def config(**settings) -> DeepMLFConfig:
    modalities = {name: {"dim": dim} for name, dim in DIMS.items()}
    return DeepMLFConfig(**{"fusion_layers": "even:2", "modalities": modalities, **settings})


MADE: dict[str, DryModel] = {}


def dry(method, **step):
    if repr(method) not in MADE:
        MADE[repr(method)] = made(method)
    return MADE[repr(method)].run(Step(**{"utterances": B, "text_tokens": T, "frames": FRAMES, **step}))


def made(method, dtype=torch.float32) -> DryModel:
    shape = planned_shape("tiny-llama")
    shape.set_attn_implementation("sdpa")
    with torch.device("meta"):
        model = DeepMLFModel(shape, config(**method))
    return DryModel(model, dtype)


def real(method, cached=False, checkpointing=False) -> int:
    """Most bytes that a step takes from the allocator and has not given back."""
    model = DeepMLFModel(load_base_model("tiny-llama", attn_implementation="sdpa"), config(**method))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_text_cache("memory" if cached else "none")
    model.train()
    mask = torch.ones(B, T, dtype=torch.long)
    mask[0, :5] = 0
    batch = {"input_ids": torch.randint(3, 250, (B, T)), "attention_mask": mask, "labels": torch.randn(B)}
    for name, frames in FRAMES.items():
        batch[name] = torch.randn(B, frames, DIMS[name])
        batch[f"{name}_mask"] = torch.ones(B, frames, dtype=torch.bool)
    model(**batch).loss.backward()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model(**batch).loss.backward()
    now, peak = 0, 0
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("method", "step"),
    [
        (JOINT, {}),
        (FUSION, {"cached": True}),
        ({**JOINT, "r": 4}, {"checkpointing": True}),
        ({**JOINT, "objective": {"gamma": 1.0}}, {}),
    ],
    ids=str,
)
@pytest.mark.cpu
def test_the_peak_is_that_of_a_real_step(method, step):
    renamed = {{"cached": "text_cached"}.get(name, name): value for name, value in step.items()}
    assert dry(method, on_cpu=True, **renamed).peak == pytest.approx(real(method, **step), rel=0.03)


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("method", [JOINT, {**JOINT, "r": 4}, {**JOINT, "objective": {"gamma": 1.0}}], ids=str)
def test_layers_that_run_again_get_the_answers_of_the_first_time(method, on_cpu):
    model = made(method, torch.bfloat16)  # of which a CPU computes attention in a way of its own
    step = Step(utterances=B, text_tokens=T, frames=FRAMES, on_cpu=on_cpu)
    found = model.run(replace(step, checkpointing=True))
    assert found.gradients == found.trained
    assert found.kept < model.run(step).kept


@pytest.mark.cpu
def test_linear_layers_of_zero_3_keep_what_those_of_deepspeed_keep(monkeypatch):
    linear = pytest.importorskip("deepspeed.runtime.zero.linear")
    monkeypatch.setattr(av_encoder, "KEPT_ELEMENTS", 0)  # of maps, which are another matter
    plain = real(JOINT)
    with monkeypatch.context() as wrapped:
        wrapped.setattr(torch.nn.functional, "linear", linear.zero3_linear_wrap)
        kept = real(JOINT)
    assert kept > 1.05 * plain
    assert dry(JOINT, keeps_inputs=True, on_cpu=True).peak == pytest.approx(kept, rel=0.03)


def test_each_option_changes_what_it_should():
    plain = dry(JOINT)
    assert plain.gradients == plain.trained
    assert dry(JOINT, utterances=2 * B).peak > 1.8 * plain.peak - plain.trained
    assert dry(JOINT, text_tokens=2 * T).peak > plain.peak
    assert dry(JOINT, frames={"audio": 200, "vision": 30}).peak > plain.peak
    assert dry({**JOINT, "r": 4}, checkpointing=True).kept < dry({**JOINT, "r": 4}).kept
    assert dry(JOINT, accumulates=True).peak > plain.peak
    dropped = dry(JOINT, drops_gradients=True)
    assert dropped.gradients == 0
    assert dropped.peak <= plain.peak
    assert dry(JOINT, granule=512).peak > plain.peak
    cached = dry(FUSION, text_cached=True)
    fusion = dry(FUSION)
    assert cached.text > dry(FUSION, text_cached=True, cache_dtype="bfloat16").text > fusion.text == 0
    assert fusion.kept < plain.kept


def test_half_precision_attends_as_the_device_that_will_compute_does(monkeypatch):
    """On a CPU MM Blocks write attention out; on a GPU they do not, though fake tensors are all on a CPU."""
    asked = []
    plain = attention_kernels.written_out
    for module in (attention_kernels, context_reading):
        monkeypatch.setattr(module, "written_out", lambda *args: asked.append(args) or plain(*args))
    half = made(FUSION, torch.bfloat16)
    step = Step(utterances=B, text_tokens=T, frames=FRAMES)
    half.run(step)
    assert not asked
    half.run(replace(step, on_cpu=True))
    assert asked


def test_what_a_cpu_keeps_of_attention_is_not_planned_for_a_gpu(monkeypatch):
    kept = {on_cpu: dry(FUSION, on_cpu=on_cpu).kept for on_cpu in (False, True)}
    monkeypatch.setattr(av_encoder, "KEPT_ELEMENTS", 0)
    assert dry(FUSION, on_cpu=False).kept == kept[False]
    assert dry(FUSION, on_cpu=True).kept < kept[True]


def test_bytes_end_with_their_storage():
    with LiveBytes(held=[]) as live:
        a = torch.empty(100)
        view = a[:10]
        assert live.now == 400
        del a
        assert live.now == 400
        del view
        assert live.now == 0
    assert live.peak == 400
