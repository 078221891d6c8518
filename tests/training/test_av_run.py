"""Stage 1 of the fusion curriculum: an AV encoder trained alone, by the machinery of any run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.adapters.av_encoder_file import read_av_encoder
from deepmlf_llm.data.collate import Collator
from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.statistics.predictions import read_predictions
from deepmlf_llm.training.assemble import method_config
from deepmlf_llm.training.av_model import AVEncoderModel
from deepmlf_llm.training.av_run import pretrain_av_encoder
from deepmlf_llm.training.av_settings import check_av_settings
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.settings import RunSettings

from .conftest import DIMS, Utterances
from .test_run import lines_of, run_until

MakeSettings = Callable[..., RunSettings]


@pytest.fixture
def av_settings(tmp_path: Path) -> MakeSettings:
    def make(**changes: Any) -> RunSettings:
        values: dict[str, Any] = {
            "output_dir": str(tmp_path / "av"),
            "batch_size": 8,
            "num_train_epochs": 2,
            "av_encoder.num_layers": 1,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "report_to": "none",
        }
        return RunSettings.from_dict({**values, **{name.replace("__", "."): v for name, v in changes.items()}})

    return make


def tensors_of(settings: RunSettings) -> dict[str, torch.Tensor]:
    return read_av_encoder(Path(str(settings.output_dir)) / "av_encoder").tensors


def test_a_run_leaves_an_encoder_that_has_learnt(
    av_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepmlf_llm.backbones.load_base_model", None)  # no language model is called for
    settings = av_settings(num_train_epochs=12, warmup_epochs=0, av_readout="last")
    result = pretrain_av_encoder(settings, toy_data)
    run = tmp_path / "av"
    assert json.loads((run / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {p.name for p in (run / "av_encoder").iterdir()} == {"av_encoder.json", "av_encoder.safetensors"}
    assert read_av_encoder(run / "av_encoder").readout == "last"
    assert not (run / "adapter").exists()
    for shown, split in (("validation", "valid"), ("test", "test")):
        found = read_predictions(run / "predictions.parquet", split)
        assert np.abs(found.head() - found.labels).mean() == pytest.approx(result["metrics"][shown]["mae"], abs=1e-6)
    labels = np.array([item["label"] for item in toy_data.valid.items])  # type: ignore[attr-defined]
    constant = np.abs(labels - np.median([i["label"] for i in toy_data.train.items])).mean()  # type: ignore[attr-defined]
    assert result["metrics"]["validation"]["mae"] < 0.7 * constant
    assert {"mae", "corr", "acc7", "f1_non0"} <= set(result["metrics"]["test"])
    kinds = {line["kind"] for line in lines_of(settings)}
    assert kinds == {"train", "validation"}
    assert pretrain_av_encoder(settings, toy_data) == json.loads(json.dumps(result))  # finished before


def test_the_loss_is_the_error_of_those_that_are_heard_or_seen(toy_data: TrainingData) -> None:
    data = TrainingData(*[Utterances(6, 3, lambda i: ("audio", "vision") if i == 2 else ())] * 3, toy_data.modalities)
    config = method_config(RunSettings.from_dict({"av_encoder": {"num_layers": 1}}), data)
    torch.manual_seed(0)
    model = AVEncoderModel(config, "mean").eval()
    batch = Collator(None, DIMS)([data.train[i] for i in range(6)])
    assert set(batch) == {"labels", *DIMS, *(f"{name}_mask" for name in DIMS)}
    output = model(**batch)
    errors = (output.polarity - batch["labels"]).abs()
    assert_close(output.loss, errors[[0, 1, 3, 4, 5]].mean())
    assert torch.equal(output.av_polarity, output.polarity)
    step = model(**batch, loss_counts={"av": torch.tensor(20.0)})
    assert_close(step.loss, errors[[0, 1, 3, 4, 5]].sum() / 20)


def test_a_step_of_several_batches_is_a_step_of_one(
    av_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    """Utterances without audio and vision are dealt unevenly: a mean of means would be another gradient."""
    parts = [Utterances(n, s, lambda i: ("audio", "vision") if i < 6 else ()) for s, n in enumerate((16, 8, 8))]
    data = TrainingData(*parts, modalities=toy_data.modalities, fingerprint="uneven")
    still = {"max_steps": 2, "batch_size": 16, "av_encoder__dropout": 0.0, "optim": "sgd"}
    one = av_settings(**still, output_dir=str(tmp_path / "one"))
    four = av_settings(**still, gradient_accumulation_steps=4, output_dir=str(tmp_path / "four"))
    for settings in (one, four):
        pretrain_av_encoder(settings, data)
    for name, value in tensors_of(one).items():
        assert_close(tensors_of(four)[name], value, atol=2e-5, rtol=1e-4)


def test_cut_and_resumed_equals_uninterrupted_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, av_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    values = {"save_strategy": "steps", "save_steps": 3, "seqaug__av_p_apply": 0.5, "seqaug__av_p_feat": 0.3}
    whole = av_settings(**values, output_dir=str(tmp_path / "whole"))
    cut = av_settings(**values, output_dir=str(tmp_path / "cut"))
    expected = pretrain_av_encoder(whole, toy_data)
    run_until(monkeypatch, cut, toy_data, 4, pretrain_av_encoder)
    resumed = pretrain_av_encoder(cut, toy_data)
    assert lines_of(cut) == lines_of(whole)
    assert resumed["metrics"] == expected["metrics"]
    assert all(torch.equal(tensors_of(cut)[name], value) for name, value in tensors_of(whole).items())


def test_settings_of_a_language_model_are_refused_all_at_once(
    av_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    wrong = av_settings(deepspeed="zero2", fusion_layers="last:2", lora_r=2, text_cache="disk", av_learning_rate=1e-3)
    with pytest.raises(ConfigError) as caught:
        pretrain_av_encoder(wrong, toy_data)
    for words in ("deepspeed='zero2'", "fusion_layers='last:2'", "lora_r=2", "text_cache='disk'", "av_learning_rate"):
        assert words in str(caught.value)
    assert not (tmp_path / "av").exists()
    with pytest.raises(ConfigError) as caught:
        check_av_settings(av_settings(av_learning_rate=1e-3, av_weight_decay=0.1, ema_decay=0.9, cmixup_alpha=1.0))
    assert "there is no language model" not in str(caught.value)
    for words in (
        "av_learning_rate=0.001 sets the AV encoder apart from the rest: nothing else is trained here; use ",
        "use learning_rate",
        "use weight_decay",
        "ema_decay=0.9 is a setting of `deepmlf train` that `deepmlf pretrain-av` does not offer",
        "cmixup_alpha=1.0 is a setting of `deepmlf train` that",
    ):
        assert words in str(caught.value)


def test_a_config_of_such_a_run_is_good_for_such_a_run(av_settings: MakeSettings, toy_data: TrainingData) -> None:
    again = RunSettings.from_dict(av_settings().to_dict())
    assert pretrain_av_encoder(again, toy_data, dry_run=True)["train"]["steps"] == 10


def test_labels_are_looked_at_and_nothing_is_left(
    av_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    toy_data.train.items[3]["label"] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"split 'train': 1 labels are missing or not finite .*'3'"):
        pretrain_av_encoder(av_settings(), toy_data)
    assert not (tmp_path / "av").exists()
