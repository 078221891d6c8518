"""The published forms, whole, against straight-line formulas in float64: values and gradients to 1e-13.

The frozen LM's own layers are called as transformers has them (its RMSNorm computes in fp32 in any model); everything
that DeepMLF adds is computed anew by ``tests/reference.py``, utterance by utterance, without padding or masks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests import reference
from tests.families import HEADS, MODALITIES, VOCABULARY, tiny_family, tiny_model

AV = {"width": 12, "num_layers": 3, "num_heads": 6, "ffw_width": 16, "max_frames": 5, "dropout": 0.0}
GPT2 = {"family": "gpt2", "ffw_weights": "copy", "norm_init": "fresh"}
SMOLLM = {"family": "llama", "ffw_weights": "shared", "norm_init": "fresh", "ffw_lora_alpha": 6.0}
LENGTHS = (7, 4, 6)
FRAMES = {"audio": (13, 7, 9), "vision": (17, 6, 8)}
ABSENT = {"audio": (13, 0, 0), "vision": (0, 6, 0)}  # one row without vision, one without audio, one without both
FEW = {"audio": (1, 3, 2), "vision": (4, 1, 5)}  # never more than windows: a single frame, several
CASES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "GPT-2 form": ({**GPT2}, FRAMES),
    "SmolLM form": ({**SMOLLM}, FRAMES),
    "missing modality": ({**GPT2}, ABSENT),
    "missing modality, SmolLM": ({**SMOLLM}, ABSENT),
    "fewer frames than windows": ({**GPT2}, FEW),
    "gamma": ({**GPT2, "objective": {"gamma": 1.1, "lambda_fusion": 1.0}}, FRAMES),
    "gamma, SmolLM": ({**SMOLLM, "objective": {"gamma": 0.7}}, ABSENT),
    "BatchNorm of features": ({**GPT2, "av_encoder": {**AV, "feature_norm": "batch"}}, FRAMES),
    "one modality": ({**GPT2, "modalities": {"audio": {"dim": 3}}}, {"audio": (13, 0, 2)}),
    "fusion scope": ({**SMOLLM, "ffw_scope": "fusion"}, FRAMES),
    "format 1": ({**GPT2, "av_encoder": {**AV, "pool": "after"}}, FRAMES),
}


def live(lm: Any) -> reference.ReferenceLM:
    """The formulas of a family over transformers' own layers, one utterance at a time."""
    formulas = {"gpt2": reference.reference_gpt2, "llama": reference.reference_llama}[lm.config.model_type](lm)
    if lm.config.model_type == "llama":
        decoder = lm.model

        def layer(i: int, x: Tensor) -> Tensor:
            later = torch.full((len(x), len(x)), float("-inf")).double().triu(1)
            rotary = decoder.rotary_emb(x[None], torch.arange(len(x))[None])
            out = decoder.layers[i](x[None], attention_mask=later[None, None], position_embeddings=rotary)
            return (out[0] if isinstance(out, tuple) else out)[0]

        formulas.layer, formulas.final = layer, decoder.norm
    return formulas


def batch_of(frames: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Three utterances, padded on the left, garbage in the padding of frames."""
    generator = torch.Generator().manual_seed(7)
    ids, mask = torch.zeros(3, max(LENGTHS), dtype=torch.long), torch.zeros(3, max(LENGTHS), dtype=torch.long)
    for row, count in enumerate(LENGTHS):
        ids[row, -count:] = torch.randint(3, VOCABULARY, (count,), generator=generator)
        mask[row, -count:] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([1.5, -0.4, 0.2]).double()}
    for name, counts in frames.items():
        batch[name] = torch.randn(3, max(counts), MODALITIES[name]["dim"], generator=generator).double()
        batch[f"{name}_mask"] = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return batch


class Oracle:
    """Everything the model says about a batch, from formulas over its live weights."""

    def __init__(self, model: Any, batch: dict[str, Tensor], frames: dict[str, tuple[int, ...]]) -> None:
        config, stack = model.deepmlf_config, model.active_stack
        # Buffers as they were: a forward pass in training moves them.
        buffers = {name: buffer.clone() for name, buffer in stack.named_buffers()}
        self.w = {**dict(stack.named_parameters()), **buffers}
        settings = reference.Settings(
            heads=HEADS,
            ffw_scope=config.ffw_scope,
            lora_scale=config.ffw_lora_alpha / config.ffw_lora_r,
            av_heads=config.av_encoder.num_heads,
            max_frames=config.av_encoder.max_frames,
            pool=config.av_encoder.pool,
        )
        lm = live(model.get_base_model())
        self.rows = [
            reference.deepmlf(
                lm,
                batch["input_ids"][row, -length:],
                {name: batch[name][row, : counts[row]] for name, counts in frames.items()},
                self.w,
                settings,
            )
            for row, length in enumerate(LENGTHS)
        ]
        joint = [torch.cat([row.tokens.mean(0), row.text[-1], row.context_mean]) for row in self.rows]
        self.joint = torch.stack(joint)
        self.task = torch.stack([row.task[0] for row in self.rows])
        self.surprise = [
            loss
            for row, length, ids in zip(self.rows, LENGTHS, batch["input_ids"], strict=True)
            for loss in reference.next_token_losses(lm, row.text, ids[-length:])
        ]

    def losses(self, labels: Tensor, frames: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        heard = [row for row in range(3) if any(counts[row] for counts in frames.values())]
        pairs = list(zip(self.rows, labels, strict=True))
        return {
            "task": (self.task - labels).abs().mean(),
            "fusion": sum((row.fusion - y).abs().mean() for row, y in pairs) / 3,
            "av": sum((pairs[i][0].av - pairs[i][1]).abs()[0] for i in heard) / len(heard),
            "text": sum((row.text_polarity - y).abs()[0] for row, y in pairs) / 3,
            "lm": sum(self.surprise) / len(self.surprise),
        }


def build(case: str) -> tuple[Any, dict[str, Tensor], dict[str, tuple[int, ...]]]:
    settings, frames = CASES[case]
    settings = {"av_encoder": AV, **settings}
    # A base in fp64: what is built beside it must be fp64 by itself.
    model = tiny_model(tiny_family(settings.pop("family")).double(), **settings)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    return model, batch_of(frames), frames


@pytest.mark.parametrize("case", CASES)
def test_equals_the_oracle(case):
    model, batch, frames = build(case)
    out, oracle = model(**batch), Oracle(model, batch, frames)
    exact = {"rtol": 0, "atol": 1e-13}
    assert_close(out.polarity, oracle.task, **exact)
    assert_close(out.fusion_polarity, torch.stack([row.fusion.mean() for row in oracle.rows]), **exact)
    assert_close(out.text_polarity, torch.stack([row.text_polarity[0] for row in oracle.rows]), **exact)
    assert_close(out.av_polarity, torch.stack([row.av[0] for row in oracle.rows]), **exact)
    expected, objective = oracle.losses(batch["labels"], frames), model.deepmlf_config.objective
    weights = {
        **{"task": 1.0, "fusion": objective.lambda_fusion, "av": objective.lambda_av, "text": objective.lambda_text},
        **({"lm": objective.gamma} if objective.gamma else {}),
    }
    assert out.losses.keys() == weights.keys()
    for name in weights:
        assert_close(out.losses[name], expected[name], **exact, msg=name)
    total = sum(weight * expected[name] for name, weight in weights.items())
    assert_close(out.loss, total, **exact)

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(out.loss, list(trained.values()), allow_unused=True)
    told = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    for name, one, other in zip(trained, found, told, strict=True):
        assert one is not None, name
        other = torch.zeros_like(one) if other is None else other  # the formulas leave out what adds nothing
        assert_close(one, other, rtol=0, atol=1e-13 * max(1.0, float(other.abs().max())), msg=name)


@pytest.mark.parametrize("case", ["GPT-2 form", "SmolLM form"])
def test_in_training_the_task_head_normalises_over_the_batch(case):
    model, batch, frames = build(case)
    found = model.train()(**batch).polarity
    oracle = Oracle(model, batch, frames)
    w = reference.under(oracle.w, "heads.task.")
    x = reference.linear(oracle.joint, w, "1")
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * w["2.weight"] + w["2.bias"]
    assert_close(found, reference.linear(x.clamp(min=0), w, "4")[:, 0], rtol=0, atol=1e-13)


def test_no_pass_of_an_fp64_model_leaves_fp64():
    """Every floating tensor that DeepMLF's own modules return, in training with every option on."""
    model, batch, _ = build("gamma")
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, Tensor) and x.is_floating_point():
                    seen[name] = x.dtype

        return hook

    for name, module in model.active_stack.named_modules():
        module.register_forward_hook(note(name))
    out = model.train()(**batch)
    assert len(seen) > 50
    assert set(seen.values()) == {torch.float64}
    assert {x.dtype for x in (out.loss, out.polarity, *out.losses.values())} == {torch.float64}
