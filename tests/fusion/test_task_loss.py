"""What outputs cost, against formulas written out: cross-entropy, one of each class, weights, means over utterances."""

from __future__ import annotations

import math

import pytest
import torch

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.fusion.task_loss import task_loss
from tests.families import tiny_batch, tiny_family, tiny_model

ONE = {"kind": "single_label", "classes": ["a", "b", "c"], "class_weights": [0.5, 1.0, 2.0]}
SEVERAL = {"kind": "multi_label", "classes": ["a", "b", "c"], "class_weights": [3.0, 1.0, 2.0]}


def config(task, **changes):
    return DeepMLFConfig(dataset="toy", task=task, **changes)


def test_cross_entropy_of_each_token_weighed_and_unweighed():
    logits, labels = torch.randn(4, 2, 3).double(), torch.tensor([0.0, 2.0, 1.0, 2.0])
    for weights, objective in ((ONE["class_weights"], {}), ([1.0] * 3, {"class_weights": "none"})):
        found = task_loss(config(ONE, objective=objective))(logits, labels)
        for row, label in enumerate(labels.int().tolist()):
            each = [math.log(sum(math.exp(x) for x in token)) - token[label] for token in logits[row].tolist()]
            assert found[row].item() == pytest.approx(weights[label] * sum(each) / 2)


def test_one_of_each_class_weighed_where_it_holds():
    logits, labels = torch.randn(5, 3).double(), torch.randint(0, 2, (5, 3)).float()
    for weights, objective in ((SEVERAL["class_weights"], {}), ([1.0] * 3, {"class_weights": "none"})):
        found = task_loss(config(SEVERAL, objective=objective))(logits, labels)
        for row in range(5):
            cost = [
                weights[k] * math.log1p(math.exp(-x)) if labels[row, k] else math.log1p(math.exp(x))
                for k, x in enumerate(logits[row].tolist())
            ]
            assert found[row].item() == pytest.approx(sum(cost) / 3)


def test_a_scale_keeps_its_distance():
    found = task_loss(DeepMLFConfig())(torch.tensor([[[1.0], [3.0]]]), torch.tensor([-1.0]))
    assert found.tolist() == [3.0]
    assert task_loss(DeepMLFConfig(objective={"loss": "mse"}))(torch.tensor([[2.0]]), torch.tensor([-1.0])).item() == 9


@pytest.mark.parametrize("shape", [(8,), (1,), (4, 2), (2, 4), (4, 1, 1), ()])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"labels: got shape .*, expected \[4\] or \[4, 1\]"):
        task_loss(DeepMLFConfig())(torch.zeros(4, 2, 1), torch.zeros(shape))


def test_outputs_follow_the_classes_and_contradictions_are_refused():
    assert config(ONE).num_outputs == 3
    assert config({"range": [0, 10]}).num_outputs == DeepMLFConfig().num_outputs == 1
    for values, told in (
        ({"dataset": "toy"}, "dataset='toy': expected one of mosi"),
        ({"dataset": "emotion"}, "dataset='emotion': its classes are in the data; task must name them"),
        ({"dataset": "toy", "task": ONE, "num_outputs": 2}, "num_outputs=2: there are 3 classes"),
        ({"dataset": "toy", "task": {"class": ["a"]}}, "unknown key 'class'"),
        ({"dataset": "mosi", "task": ONE}, "'mosi' is a shipped data set"),
        ({"objective": {"class_weights": "all"}}, "objective.class_weights='all': expected one of 'data', 'none'"),
    ):
        with pytest.raises(ConfigError, match=told):
            DeepMLFConfig(**values)


def test_heads_losses_and_gradients_of_a_model():
    model = tiny_model(tiny_family("llama"), dataset="toy", task=ONE)
    out = model(**tiny_batch(labels=torch.tensor([0.0, 2.0, 2.0])))
    assert [out[head].shape for head in ("polarity", "text_polarity", "av_polarity", "fusion_polarity")] == [(3, 3)] * 4
    weights = torch.tensor(ONE["class_weights"])
    chosen = out.polarity.log_softmax(dim=1)[range(3), [0, 2, 2]]
    assert out.losses["task"].item() == pytest.approx((-(chosen * weights[[0, 2, 2]]).sum() / 3).item(), rel=1e-5)
    out.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".heads." in name)
