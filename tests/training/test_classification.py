"""Tasks of one's own from a YAML file to a merged model: classes, several classes, a scale. No file of the user's is
needed after the data are prepared, and what was trained on one kind is refused on the other, by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deepmlf_llm import SentimentPredictor
from deepmlf_llm.commands import evaluate, merge, predict, prepare
from deepmlf_llm.errors import AdapterError, ConfigError, DataError
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings

from .conftest import QUICK_RUN

MOODS = ("joy", "anger", "calm")
SIZES = {"train": 24, "valid": 9, "test": 9}
TASKS = {
    "one": "name: moods\nclasses: [joy, anger, calm]\n",
    "several": "name: moods\nkind: multi_label\nclasses: [joy, anger, calm]\n",
    "scale": "name: valence\nrange: [0, 10]\nbins: [4, 6]\nnames: [low, middle, high]\ntext_case: lower\n",
}


def rows(kind: str):
    """Utterances whose audio says what they are."""
    random = np.random.default_rng(0)
    for split, size in SIZES.items():
        for row in range(size):
            k = row % 3
            audio = random.normal(size=(4, 3)) * 0.1 + 2 * np.eye(3)[k]
            label = {"one": MOODS[k], "several": [MOODS[k], "calm"], "scale": 5.0 * k}[kind]
            yield {"id": f"{split}{row}", "text": "So it WENT", "label": label, "mode": split, "audio": audio.tolist()}


def prepared(kind: str, place: Path) -> Path:
    """Data of a task whose file is gone afterwards."""
    source, task = place / f"{kind}.jsonl", place / f"{kind}.yaml"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    task.write_text(TASKS[kind])
    data = place / kind
    prepare.main(["--source", str(source), "--dataset", str(task), "--out", str(data), "--storage", "numpy"])
    task.unlink()
    return data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Kind of task -> data, the run's directory, its result."""
    place = tmp_path_factory.mktemp("tasks")
    found = {}
    for kind, epochs in (("one", 6), ("several", 1), ("scale", 1)):
        data, run = prepared(kind, place), place / f"run-{kind}"
        settings = {**QUICK_RUN, "data": str(data), "output_dir": str(run), "num_train_epochs": epochs}
        settings |= {"ema_decay": 0.8, "average_last": 2} if kind == "one" else {}
        found[kind] = data, run, run_training(RunSettings.from_dict(settings))
    return found


def test_a_run_learns_classes_and_says_what_it_measured(trained):
    _, run, result = trained["one"]
    test = result["metrics"]["test"]
    assert list(test) == ["acc", "f1_weighted", "f1_macro"]
    assert test["f1_weighted"] > 0.9  # heard: the text is the same everywhere
    assert result["heads"]["test"]["text"]["acc"] < 0.5
    assert result["heads"]["test"]["av"].keys() == test.keys()
    assert result["config"]["metric_for_best_model"] == "f1_weighted"
    shares = {name: facts["f1_weighted"] for name, facts in result["selection"]["candidates"].items()}
    assert shares.keys() == {"best", "ema", "last_2"}
    assert shares[result["selection"]["taken"]] == max(shares.values())  # the higher, where a loss has the lower
    found = result["classes"]["test"]
    assert [row["labels"] for row in found["table"].values()] == [3, 3, 3]
    assert np.sum(found["confusion"]) == 9
    assert test["acc"] == pytest.approx(np.trace(found["confusion"]) / 9)
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["f1_weighted"] for line in log if line["kind"] == "validation") == pytest.approx(shares["best"])
    assert result["metrics"]["validation"]["f1_weighted"] == max(shares.values())
    card = (run / "adapter" / "README.md").read_text()
    assert "Labels of `moods`, one of the classes `joy`, `anger`, `calm`; transcripts" in card
    assert "| test: class | precision | recall | F1 | labels |" in card
    assert "| test: true class, taken for | `joy` | `anger` | `calm` |" in card


def test_the_adapter_and_what_is_merged_say_classes_alike(trained, tmp_path):
    _, run, _ = trained["one"]
    merge.main(["--adapter", str(run / "adapter"), "--output", str(tmp_path / "merged")])
    audio = [2 * np.eye(3, dtype=np.float32)[[k] * 4] for k in range(3)]
    given = {"text": ["so it went"] * 4, "audio": [*audio, None]}
    adapter = SentimentPredictor.from_pretrained(run / "adapter").predict(**given)
    merged = SentimentPredictor.from_pretrained(tmp_path / "merged").predict(**given)
    assert [said.label for said in adapter[:3]] == list(MOODS)
    assert adapter[3].av_probabilities is None
    for one, other in zip(adapter, merged, strict=True):
        assert one.label == other.label
        assert list(one.probabilities) == list(MOODS)
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-4)
        assert one.label == max(one.probabilities, key=one.probabilities.__getitem__)
    assert "one of the classes `joy`" in (tmp_path / "merged" / "README.md").read_text()


def test_several_classes_are_told_each_by_itself(trained, tmp_path):
    data, run, result = trained["several"]
    assert list(result["metrics"]["test"]) == ["acc", "acc_labels", "f1_weighted", "f1_macro"]
    assert np.shape(result["classes"]["test"]["confusion"]["joy"]) == (2, 2)
    output = tmp_path / "said.jsonl"
    options = ["--adapter", str(run), "--input", str(data), "--split", "test", "--output", str(output)]
    assert predict.main(options) == 0
    for line in map(json.loads, output.read_text().splitlines()):
        assert line["label"] == [name for name, share in line["probabilities"].items() if share > 0.5]
        assert line["text_probabilities"].keys() == line["fusion_probabilities"].keys() == set(MOODS)


def test_a_scale_of_ones_own_travels_with_its_names(trained, tmp_path, capsys):
    data, run, result = trained["scale"]
    assert list(result["metrics"]["test"]) == ["mae", "corr", "acc_bins", "f1_bins"]
    assert result["config"]["metric_for_best_model"] == "mae"
    (said,) = SentimentPredictor.from_pretrained(run / "adapter").predict(text=["SO it went"])
    assert said.label == ("low" if said.polarity <= 4 else "middle" if said.polarity <= 6 else "high")
    output = tmp_path / "test.json"
    evaluate.main(["--adapter", str(run / "adapter"), "--data", str(data), "--output", str(output)])
    assert json.loads(output.read_text())["metrics"] == pytest.approx(result["metrics"]["test"], abs=1e-5)
    assert "a number in [0, 10] (low, middle, high)" in (run / "adapter" / "README.md").read_text()


def test_an_evaluation_of_classes_shows_them(trained, tmp_path, capsys):
    data, run, result = trained["one"]
    output = tmp_path / "test.json"
    source = data.with_name("one.jsonl")  # as it came, under the adapter's classes
    words = ["--adapter", str(run), "--data", str(source), "--split", "test", "--output", str(output)]
    evaluate.main([*words, "--missing", "audio=0:1"])
    found = json.loads(output.read_text())
    assert found["metrics"] == pytest.approx(result["metrics"]["test"], abs=1e-5)
    assert found["classes"] == result["classes"]["test"]
    shown = capsys.readouterr().out
    assert "true class, taken for" in shown
    assert "class precision recall" in " ".join(shown.split())
    heard, deaf = found["robustness"]["conditions"]
    assert heard["metrics"] == pytest.approx(found["metrics"], abs=1e-5)
    assert deaf["change"]["acc"]["difference"] == pytest.approx(
        deaf["metrics"]["acc"] - heard["metrics"]["acc"], abs=1e-6
    )
    assert deaf["metrics"]["acc"] < 0.7  # the text is the same everywhere
    assert "change of acc" in (tmp_path / "test.robustness.md").read_text()


def test_what_was_trained_on_one_kind_is_refused_on_the_other(trained, tmp_path):
    data = {kind: found[0] for kind, found in trained.items()}
    run = {kind: found[1] for kind, found in trained.items()}
    for adapter, other, told in (
        ("scale", "one", "labels of 'moods', the adapter predicts those of 'valence'"),
        ("one", "scale", "labels of 'valence', the adapter predicts those of 'moods'"),
        ("one", "several", "any of the classes joy, anger, calm, not 'moods', one of the classes"),
    ):
        words = ["--adapter", str(run[adapter]), "--output", str(tmp_path / "x.jsonl")]
        with pytest.raises(DataError, match=told):
            evaluate.main([*words, "--data", str(data[other])])
        with pytest.raises(DataError, match=told):
            predict.main([*words, "--input", str(data[other])])
        settings = {**QUICK_RUN, "data": str(data[other]), "output_dir": str(tmp_path / "run")}
        settings["init_from"] = str(run[adapter])
        with pytest.raises(AdapterError, match=r"init_from=.*: the data have labels of '.*, which the adapter was"):
            run_training(RunSettings.from_dict(settings))
    with pytest.raises(DataError, match=r"'valence' has a number in .0, 10.: names of classes are labels of another"):
        evaluate.main(["--adapter", str(run["scale"]), "--data", str(data["one"].with_name("one.jsonl"))])
    with pytest.raises(DataError, match=r"a number of a scale|none of|expected one of the classes"):
        evaluate.main(["--adapter", str(run["one"]), "--data", str(data["scale"].with_name("scale.jsonl"))])
    assert not list(tmp_path.iterdir())


def test_a_metric_of_another_task_does_not_select(trained, tmp_path):
    settings = {**QUICK_RUN, "data": str(trained["one"][0]), "output_dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match="metric_for_best_model='mae': moods has loss, acc, f1_weighted, f1_macro"):
        run_training(RunSettings.from_dict({**settings, "metric_for_best_model": "mae"}))
    with pytest.raises(ConfigError, match=r"cmixup_alpha=1 blends labels of a scale, and not one of the classes joy"):
        run_training(RunSettings.from_dict({**settings, "cmixup_alpha": 1.0}))
    planned = run_training(RunSettings.from_dict({**settings, "metric_for_best_model": "acc"}), dry_run=True)
    assert planned["config"]["metric_for_best_model"] == "acc"


def test_a_file_that_is_no_task_ends_the_command_with_what_is_wrong(tmp_path, capsys):
    task = tmp_path / "moods.yaml"
    task.write_text("clases: [joy, anger]\n")
    with pytest.raises(SystemExit) as ended:
        prepare.main(["--source", "x.pkl", "--dataset", str(task), "--out", str(tmp_path / "data")])
    assert ended.value.code == 2
    assert "unknown key 'clases' (did you mean 'classes'?)" in capsys.readouterr().err
