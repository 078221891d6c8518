"""What is not finite ends a run at its step, before the update, and the cause is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from deepmlf_llm.errors import DataError, DeepMLFError, RunError
from deepmlf_llm.training import run as run_module
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.finite import broken_inputs, check_predictions, is_finite_norm, some
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings

MakeSettings = Callable[..., RunSettings]


def item(data: TrainingData, split: str, row: int) -> dict[str, Any]:
    found: dict[str, Any] = data.splits()[split][row]
    return found


BAD_DATA: dict[str, tuple[str, str, Any, str]] = {
    "feature of the first step": ("train", "audio", np.nan, r"step 1: values that are not finite, in audio of '7'"),
    "infinite feature": ("train", "vision", -np.inf, r"values that are not finite, in vision of '7'; fix"),
    "beyond 32 bits": ("train", "audio", 1e300, r"values that are not finite, in audio of '7'"),
    "too large a feature": ("train", "vision", 3e38, r"vision of '7' reaches 3e\+38: look at these features"),
    "label": ("train", "label", np.nan, r"split 'train': 1 labels are missing or not finite in 32 bits, of '7'"),
    "label beyond 32 bits": ("test", "label", 1e300, r"split 'test': 1 labels .*, of '7'"),
    "too large a label": ("train", "label", 3e38, r"not finite.*label of '7' reaches 3e\+38: look at these"),
    "validation": ("valid", "audio", np.nan, r"evaluation: 1 of 12 predictions .* at the utterances '7'; audio of '7'"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("case", BAD_DATA)
def test_a_bad_feature_or_label_is_answered_as_such(
    toy_settings: MakeSettings, toy_data: TrainingData, case: str
) -> None:
    split, name, value, words = BAD_DATA[case]
    bad = item(toy_data, split, 7)
    if name == "label":
        bad["label"] = value
    else:
        bad[name] = np.ones((3, bad[name].shape[1]), dtype=np.float64)
        bad[name][1, 0] = value
    with pytest.raises(DataError, match=words) as error:
        run_training(toy_settings(objective__loss="mse", max_steps=6, batch_size=40), toy_data)
    assert "learning" not in str(error.value)


def with_trainer(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    make = run_module.make_trainer

    def changed(*args: Any) -> Any:
        trainer = make(*args)
        change(trainer)
        return trainer

    monkeypatch.setattr(run_module, "make_trainer", changed)


def test_a_gradient_is_caught_before_the_update(
    toy_settings: MakeSettings, toy_data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}

    def change(trainer: Any) -> None:
        kept["trainer"] = trainer
        _, parameter = trainer.model.parameter_groups()["fusion"][-1]
        calls = []

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            kept["before"] = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
            return gradient * torch.inf if len(calls) == 3 else gradient

        parameter.register_hook(spoil)

    with_trainer(monkeypatch, change)
    words = r"step 3: the gradient of fusion is not finite, the loss is, at the utterances .* lower learning_rate"
    with pytest.raises(RunError, match=words):
        run_training(toy_settings(), toy_data)
    after = {n: p for n, p in kept["trainer"].model.named_parameters() if p.requires_grad}
    assert all(torch.equal(after[name], value) for name, value in kept["before"].items())


def test_the_loss_of_a_run_that_diverges_is_named_by_parts(
    toy_settings: MakeSettings, toy_data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_trainer(monkeypatch, lambda trainer: setattr(trainer.args, "learning_rate", 1e30))
    with pytest.raises(RunError, match=r"step \d+: the loss is not finite \(.*task.*\), at the utterances .* diverged"):
        run_training(toy_settings(max_grad_norm=0, warmup_epochs=0), toy_data)


def test_broken_weights_of_the_base_are_named(
    toy_settings: MakeSettings, toy_data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(trainer: Any) -> None:
        with torch.no_grad():
            trainer.model.get_base_model().model.layers[0].mlp.up_proj.weight[3, 3] = torch.nan

    with_trainer(monkeypatch, change)
    with pytest.raises(RunError, match=r"step 1: .*the weights .*layers.0.mlp.up_proj.weight of the base model"):
        run_training(toy_settings(), toy_data)


def test_a_refusal_before_the_first_step_leaves_no_claim(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Any
) -> None:
    good = item(toy_data, "train", 7)["audio"]
    item(toy_data, "train", 7)["audio"] = good * np.nan
    with pytest.raises(DeepMLFError):
        run_training(toy_settings(batch_size=40), toy_data)
    assert not (tmp_path / "run").exists()
    item(toy_data, "train", 7)["audio"] = good
    assert run_training(toy_settings(batch_size=40, seed=5), toy_data)["status"] == "finished"


def test_small_parts() -> None:
    batch = {"labels": torch.tensor([0.0, torch.nan]), "audio": torch.tensor([[[1.0]], [[torch.inf]]])}
    assert broken_inputs(batch, ["audio"]) == [(1, "labels"), (1, "audio")]
    assert some(f"u{i}" for i in range(9)) == "u0, u1, u2, u3, u4, u5 and 3 more"
    assert [is_finite_norm(norm) for norm in (None, 1.0, torch.tensor(2.0), -1.0, float("inf"), float("nan"))] == [
        True, True, True, False, False, False
    ]  # fmt: skip
    items = [{"id": "a"}, {}]
    check_predictions([np.zeros(2)], items, [1, 0], [])
    with pytest.raises(RunError, match=r"1 of 2 predictions are not finite, at the utterances row 1;.*diverged"):
        check_predictions([np.array([np.nan, 0.0])], items, [1, 0], [])
