"""Labels of one modality alone: which head learns from which, over whom, and that nothing changes without them."""

from __future__ import annotations

import math

import pytest
import torch

from deepmlf_llm.config.labels import unimodal_terms
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training.losses import batch_counts
from tests.families import MODALITIES, tiny_batch, tiny_family, tiny_model

NAN = math.nan
# Of text, audio, vision. tiny_batch: row 0 has both modalities, row 1 none, row 2 audio only.
ALONE = torch.tensor([[1.0, -2.0, NAN], [NAN, 0.5, 0.5], [-1.0, 2.0, 3.0]])


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_family("llama"), unimodal_targets=["T", "A", "V"])


def test_terms_by_what_the_data_have():
    assert unimodal_terms([]) == {}
    assert unimodal_terms(["T"]) == {"text": "T"}
    assert unimodal_terms(["T", "V"]) == {"text": "T", "av": "V"}
    assert unimodal_terms(["A", "V"]) == {"audio": "A", "vision": "V"}


def test_each_head_takes_its_own_label_where_there_is_one(model):
    batch = tiny_batch(unimodal_labels=ALONE)
    out = model(**batch)
    text, audio = out.text_polarity, out.modality_polarity["audio"]
    assert out.losses["text"].item() == pytest.approx(((text[0] - 1).abs() + (text[2] + 1).abs()).item() / 2)
    assert out.losses["audio"].item() == pytest.approx(((audio[0] + 2).abs() + (audio[2] - 2).abs()).item() / 2)
    assert out.losses["vision"] == 0  # row 0 is not rated, rows 1 and 2 cannot be seen
    av, y = out.av_polarity, batch["labels"]
    assert out.losses["av"].item() == pytest.approx(((av[0] - y[0]).abs() + (av[2] - y[2]).abs()).item() / 2)
    weights = {"task": 1.0, "fusion": 0.4, "av": 0.8, "text": 0.8, "audio": 0.8, "vision": 0.8}
    assert out.loss.item() == pytest.approx(sum(weights[name] * part.item() for name, part in out.losses.items()))


def test_a_head_of_a_modality_reads_its_frames_before_they_are_joined(model):
    stack, seen = model.active_stack, {}
    handles = [
        encoder.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.detach()))
        for name, encoder in stack.av_encoder.encoders.items()
    ]
    batch = tiny_batch()
    out = model(**batch)
    for handle in handles:
        handle.remove()
    for name, row in (("audio", 0), ("audio", 2), ("vision", 0)):
        windows = min(5, max(batch[f"{other}_mask"][row].sum().item() for other in MODALITIES))
        mean = seen[name][row, :windows].mean(dim=0)
        expected = stack.heads.modalities[name](mean).squeeze()
        assert out.modality_polarity[name][row].item() == pytest.approx(expected.item(), abs=1e-6)


def test_one_of_audio_and_vision_drives_the_av_head():
    model = tiny_model(tiny_family("llama"), unimodal_targets=["V"])
    assert not model.active_stack.heads.modalities
    out = model(**tiny_batch(unimodal_labels=ALONE))
    assert out.modality_polarity is None
    assert out.losses["av"].item() == pytest.approx((out.av_polarity[2] - 3).abs().item())  # row 1 has nothing to read


def test_parts_of_a_step_add_up_to_one_large_batch(model):
    batch = tiny_batch(unimodal_labels=ALONE)
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(0, 1), slice(1, 3))]
    counted = [batch_counts(part, MODALITIES, unimodal_terms(["T", "A", "V"])) for part in parts]
    counts = {name: sum(part[name] for part in counted) for name in counted[0]}
    whole = model(**batch)
    assert counts == {**batch_counts(batch, MODALITIES, unimodal_terms(["T", "A", "V"]))}
    total = sum(model(**part, loss_counts=counts).loss for part in parts)
    assert total.item() == pytest.approx(whole.loss.item(), rel=1e-5)


def test_every_head_gets_a_gradient_even_where_nobody_is_rated(model):
    model.zero_grad()
    model(**tiny_batch(unimodal_labels=torch.full((3, 3), NAN))).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if ".heads." in name}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())


def test_off_is_what_it_was():
    plain = tiny_model(tiny_family("llama"))
    names = set(plain.active_stack.state_dict())
    assert not any("heads.modalities" in name for name in names)
    out, given = plain(**tiny_batch()), plain(**tiny_batch(unimodal_labels=ALONE))
    assert out.loss == given.loss
    assert given.modality_polarity is None
    assert list(given.losses) == ["task", "fusion", "av", "text"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"unimodal_targets": ["A", "T"]}, "expected a list of some of T, A, V, in this order"),
        ({"unimodal_targets": "T"}, "expected a list of some of T, A, V"),
        ({"unimodal_targets": ["A", "V"]}, "there is no modality 'audio'"),
        (
            {"unimodal_targets": ["T"], "dataset": "x", "task": {"classes": ["a", "b"]}},
            "labels of one modality alone are numbers of a scale",
        ),
        ({"objective": {"unimodal_labels": 1}}, "objective.unimodal_labels=1: expected true or false"),
    ],
)
def test_what_does_not_go_together_is_refused(values, told):
    with pytest.raises(ConfigError, match=told):
        DeepMLFConfig(**values)
