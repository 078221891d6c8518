"""Mirrors ``deepmlf_llm/baselines/`` and ``commands/baseline.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch.utils.data import Dataset

from deepmlf_llm.backbones import Decoder, load_base_model, load_tokenizer
from deepmlf_llm.baselines import fitting
from deepmlf_llm.baselines.regressors import PooledFusion
from deepmlf_llm.baselines.ridge import best_ridge
from deepmlf_llm.baselines.run import _stacked, pooled_features, run_baseline
from deepmlf_llm.baselines.settings import KINDS, BaselineSettings
from deepmlf_llm.baselines.states import pooled_states
from deepmlf_llm.commands import baseline as command
from deepmlf_llm.config.sections import TextConfig
from deepmlf_llm.data.collate import Collator
from deepmlf_llm.errors import ConfigError, RunError
from deepmlf_llm.statistics.comparing import compare, open_entry
from deepmlf_llm.training.data import TrainingData, take_fraction, tokenised

WORDS = ("awful", "poor", "so", "fine", "superb")


class Clips(Dataset[dict[str, Any]]):
    """Utterances of which the text says a part of the label and the audio the rest."""

    def __init__(self, size: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.items = []
        for i in range(size):
            said, heard = int(random.integers(0, 5)), float(random.choice([-1.0, 1.0]))
            frames = random.normal(size=(4, 2)).astype(np.float32) * 0.1
            frames[:, 0] += heard
            audio = frames[: 0 if i % 7 == 6 else 4]
            label = said / 2 - 1 + (heard if len(audio) else 0.0)
            self.items.append({"id": f"{seed}_{i}", "text": f"it was {WORDS[said]}", "label": label, "audio": audio})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


@pytest.fixture(scope="module")
def data() -> TrainingData:
    parts = {name: Clips(size, seed) for seed, (name, size) in enumerate((("train", 96), ("valid", 32), ("test", 32)))}
    return TrainingData(**parts, modalities={"audio": {"dim": 2}})


@pytest.fixture(scope="module")
def results(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Each baseline once."""
    root = tmp_path_factory.mktemp("baselines")
    changes = {
        "lora_text": {"num_train_epochs": 4, "learning_rate": 1e-2, "lora_r": 4},
        "bam": {"num_train_epochs": 40, "learning_rate": 3e-3, "hidden": 16, "early_stopping_patience": 20},
    }
    found = {}
    for kind in KINDS:
        place = root / kind
        settings = BaselineSettings(kind, base_model="tiny-llama", output_dir=str(place), **changes.get(kind, {}))
        found[kind] = place, run_baseline(settings, data)
    return found


def test_each_writes_the_files_of_a_run(results: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    for kind, (place, result) in results.items():
        stored = json.loads((place / "result.json").read_text())
        assert stored.keys() == result.keys()
        assert {"status", "seed", "metrics", "intervals", "heads", "train", "data", "environment"} <= stored.keys()
        assert stored["config"]["baseline"] == kind
        assert stored["metrics"]["test"].keys() == stored["metrics"]["validation"].keys() >= {"mae", "acc2_non0"}
        names = {"result.json", "predictions.parquet", "confusion.svg", "calibration.svg"}
        assert {path.name for path in place.iterdir()} == names
    assert results["constant"][1]["base_model"]["name"] is None


def test_they_compare_and_the_better_ones_are_better(results: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    found = compare([open_entry(str(place)) for place, _ in results.values()], resamples=4000)
    readings = {Path(d.other).name: d.reading for d in found.differences if d.metric == "mae"}
    assert readings["bam"] == "better"
    mae = {kind: result["metrics"]["test"]["mae"] for kind, (_, result) in results.items()}
    assert mae["bam"] < mae["ridge"] - 0.3  # the text alone cannot know what is heard
    assert mae["ridge"] < mae["constant"] + 0.1
    chosen = {kind: result["metrics"]["validation"]["mae"] for kind, (_, result) in results.items()}
    assert chosen["lora_text"] < chosen["constant"]


def test_the_constant_is_the_median(results: dict[str, tuple[Path, dict[str, Any]]], data: TrainingData) -> None:
    labels = {
        name: [data.splits()[name][i]["label"] for i in range(len(data.splits()[name]))] for name in data.splits()
    }
    median = np.median(labels["train"])
    assert results["constant"][1]["train"]["value"] == median
    expected = np.abs(np.array(labels["test"]) - median).mean()
    assert results["constant"][1]["metrics"]["test"]["mae"] == pytest.approx(expected, abs=1e-6)


def test_a_share_of_the_training_split_is_a_runs_share(data: TrainingData, tmp_path: Path) -> None:
    result = run_baseline(BaselineSettings("constant", data_fraction=0.1, output_dir=str(tmp_path / "out")), data)
    share = take_fraction(data.train, 0.1)
    labels = [share[i]["label"] for i in range(len(share))]  # type: ignore[arg-type]
    assert result["train"]["value"] == pytest.approx(float(np.median(labels)))
    assert result["data"]["used"]["train"] == {"utterances": 10}
    assert result["data"]["used"]["test"] == {"utterances": 32}


def test_states_are_those_of_each_text_alone(data: TrainingData) -> None:
    base, tokenizer = load_base_model("tiny-llama"), load_tokenizer("tiny-llama")
    split = tokenised(data.valid, "valid", tokenizer, TextConfig())
    found = pooled_states(Decoder(base), split, Collator(tokenizer, {}))
    for row in (0, 5, 31):
        ids = torch.tensor([split.input_ids[row]], device=base.device)
        hidden = base(input_ids=ids, output_hidden_states=True).hidden_states[1:-1]  # the last one is normalised
        for layer, states in enumerate(hidden):
            assert found[0, layer, row] == pytest.approx(states[0, -1].detach().cpu().numpy(), abs=1e-5)
            assert found[1, layer, row] == pytest.approx(states[0].mean(dim=0).detach().cpu().numpy(), abs=1e-5)


def test_ridge_is_chosen_on_validation_and_never_sees_test_labels() -> None:
    random = np.random.default_rng(0)
    labels = {name: random.normal(size=60).astype(np.float32) for name in ("train", "valid", "test")}
    states = {name: random.normal(size=(2, 3, 60, 4)).astype(np.float32) for name in labels}
    for name in states:
        states[name][1, 2, :, 0] = labels[name]  # only there can it be read
    found = best_ridge(states, labels)
    assert found.facts().items() >= {"pooling": "mean", "layer": 2}.items()
    scaler = StandardScaler().fit(states["train"][1, 2])
    ridge = Ridge(found.penalty).fit(scaler.transform(states["train"][1, 2]), labels["train"])
    assert found.predictions["test"] == pytest.approx(ridge.predict(scaler.transform(states["test"][1, 2])), abs=1e-5)
    assert best_ridge(states, {**labels, "test": labels["test"] * 0}).layer == 2


def test_pooled_features_are_standardised_means_and_zero_where_absent(data: TrainingData) -> None:
    found = pooled_features(data, ["audio"], [2])
    heard = [i for i in range(96) if len(data.train[i]["audio"])]
    means = np.stack([data.train[i]["audio"].mean(axis=0) for i in heard])
    assert found["train"][heard] == pytest.approx((means - means.mean(axis=0)) / means.std(axis=0), abs=1e-4)
    assert (found["train"][6] == 0).all()


def test_modality_dropout_takes_whole_modalities_in_training_only() -> None:
    torch.manual_seed(0)
    model = PooledFusion(4, [2, 3], 8, 0.3)
    torch.nn.init.normal_(model.head.weight)
    seen: list[torch.Tensor] = []
    model.mlp[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    text, pooled = torch.randn(2000, 4), torch.ones(2000, 5)
    model(text, pooled)
    model.eval()(text, pooled)
    dropped, whole = seen
    assert (whole == 1).all()
    for columns in (dropped[:, :2], dropped[:, 2:]):
        assert (columns == columns[:, :1]).all()
        assert (columns[:, 0] == 0).float().mean() == pytest.approx(0.3, abs=0.04)


def test_a_training_predicts_the_test_split_once_after_its_best_epoch_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random, read = np.random.default_rng(0), []
    rows = [{"text": x[:4], "pooled": x[4:], "labels": x.sum()} for x in random.normal(size=(24, 6)).astype(np.float32)]

    class Watched(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    def before(self: Any, model: Any) -> None:
        assert not read
        restore(self, model)

    restore = fitting._Best.restore
    monkeypatch.setattr(fitting._Best, "restore", before)
    settings = BaselineSettings("bam", num_train_epochs=2)
    splits = {"train": rows[:12], "valid": rows[12:18], "test": Watched(rows[18:])}
    fitting.fit(lambda: PooledFusion(4, [2], 8, 0.0), splits, _stacked, "mosi", settings)
    assert sorted(read) == list(range(6))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from deepmlf_llm.data.demo import embedded_dataset

    data = str(embedded_dataset(tmp_path / "cache", sizes=(16, 8, 8)))
    monkeypatch.chdir(tmp_path)
    command.main(["--kind", "constant", "--data", data])
    assert "Baseline constant" in capsys.readouterr().out
    assert (tmp_path / "runs" / "baseline-constant-seed-42" / "result.json").is_file()
    with pytest.raises(RunError, match="is there already"):
        command.main(["--kind", "constant", "--data", data])
    with pytest.raises(ConfigError) as caught:
        command.main(["--kind", "ridge", "--lora_r", "0", "--seed", "-1", "--dtype", "float8"])
    for part in ("lora_r=0", "seed=-1", "dtype='float8'"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="template='no place'"):
        command.main(["--kind", "ridge", "--template", "no place"])
    with pytest.raises(SystemExit):
        command.main(["--kind", "rigde"])
    assert "did you mean 'ridge'" in capsys.readouterr().err
