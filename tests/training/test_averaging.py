from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.errors import RunError
from deepmlf_llm.training.averaging import MovingAverage, mean_of


def weights(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "w": torch.randn(3, 2, generator=generator),
        "running_var": torch.rand(2, generator=generator),
        "num_batches_tracked": torch.tensor(step),
    }


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_moving_average_is_the_recursion_of_its_definition(decay: float) -> None:
    average = MovingAverage(decay)
    expected = {name: tensor.double() for name, tensor in weights(0).items()}
    for step in range(30):
        average.update(weights(step))
        if step:
            d = min(decay, (1 + step) / (10 + step))
            expected = {name: d * old + (1 - d) * weights(step)[name] for name, old in expected.items()}
    for name in ("w", "running_var"):
        assert_close(average.tensors[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert average.tensors["num_batches_tracked"] == 29
    assert average.steps == 30


def test_it_does_not_move_with_the_weights_and_goes_on_from_a_file_bit_for_bit(tmp_path: Path) -> None:
    live = weights(0)
    average, again = MovingAverage(0.9), MovingAverage(0.9)
    average.update(live)
    live["w"].add_(1.0)
    assert torch.equal(average.tensors["w"], weights(0)["w"])
    for step in range(1, 5):
        average.update(weights(step))
    average.save(tmp_path)
    again.load(tmp_path, live)
    for other in (average, again):
        other.update(weights(5))
    assert again.steps == average.steps == 6
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in average.tensors.items())


def test_a_file_that_is_missing_damaged_or_of_another_model_is_refused(tmp_path: Path) -> None:
    average = MovingAverage(0.9)
    with pytest.raises(RunError, match="missing or damaged"):
        average.load(tmp_path, weights(0))
    average.update(weights(0))
    average.save(tmp_path)
    with pytest.raises(RunError, match="of another model"):
        MovingAverage(0.9).load(tmp_path, {**weights(0), "w": torch.zeros(4)})
    (tmp_path / "ema.safetensors").write_bytes(b"\x08")
    with pytest.raises(RunError, match="missing or damaged"):
        MovingAverage(0.9).load(tmp_path, weights(0))


def test_the_mean_of_several_adapters() -> None:
    parts = [weights(step) for step in range(5)]
    found = mean_of(iter(parts))
    for name in ("w", "running_var"):
        assert_close(found[name], torch.stack([part[name] for part in parts]).mean(0))
    assert found["num_batches_tracked"] == 4
    assert torch.equal(parts[0]["w"], weights(0)["w"])
