"""Each head against its formula; BatchNorm that never sees a variance of one sample."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.modules import Heads
from tests.reference import linear, task_head, under, weights_of

B, N, D, C = 4, 3, 6, 5


def inputs():
    return torch.randn(B, N, D).double(), torch.randn(B, D).double(), torch.randn(B, C).double()


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_equal_their_formulas(norm, outputs):
    heads = Heads(D, C, hidden_width=7, norm=norm, num_outputs=outputs).double()
    tokens, last_text, context = inputs()
    heads(tokens, last_text, context)  # moves the running statistics
    heads.eval()
    found, w = heads(tokens, last_text, context), weights_of(heads)
    assert found.task.shape == found.text.shape == found.av.shape == (B, outputs)
    for row in range(B):
        joint = torch.cat([tokens[row].mean(0), last_text[row], context[row]])
        assert_close(found.task[row], task_head(joint, under(w, "task.")))
        assert_close(found.fusion[row], linear(tokens[row], w, "fusion"))
        assert_close(found.text[row], linear(last_text[row], w, "text"))
        assert_close(found.av[row], linear(context[row], w, "av"))


def test_without_a_context_the_task_head_reads_tokens_and_text_and_there_is_no_av_head():
    heads = Heads(D, 0, hidden_width=7, norm="layer").double()
    tokens, last_text, _ = inputs()
    found, w = heads(tokens, last_text), weights_of(heads)
    assert found.av is None
    assert not [name for name in w if name.startswith("av")]
    for row in range(B):
        joint = torch.cat([tokens[row].mean(0), last_text[row]])
        assert_close(found.task[row], task_head(joint, under(w, "task.")))


def test_batch_norm_trains_on_the_batch():
    heads = Heads(D, C, hidden_width=7).double()
    tokens, last_text, context = inputs()
    found = heads(tokens, last_text, context).task
    w = weights_of(heads)
    x = linear(torch.cat([tokens.mean(1), last_text, context], dim=1), w, "task.1")
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    assert_close(found, linear((x * w["task.2.weight"] + w["task.2.bias"]).clamp(min=0), w, "task.4"))


def test_a_training_batch_of_one_uses_the_running_statistics():
    heads = Heads(D, C).double()
    rows = [x[:1] for x in inputs()]
    found = heads(*rows).task
    assert_close(found, heads.eval()(*rows).task)
    assert heads.task[2].num_batches_tracked == 0


def test_regression_is_fp32_whatever_the_lm_runs_in():
    heads = Heads(D, C).eval()
    rows = [x.bfloat16() for x in inputs()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = heads(*rows)
    assert {x.dtype for x in (found.task, found.fusion, found.text, found.av)} == {torch.float32}
    assert_close(found.task, heads(*(x.float() for x in rows)).task, rtol=0, atol=0)


def test_dropout_before_the_task_head_only():
    heads = Heads(D, C, norm="layer", dropout=0.5).double()
    rows = inputs()
    first, second = heads(*rows), heads(*rows)
    assert not torch.allclose(first.task, second.task)
    assert torch.equal(first.text, second.text)
