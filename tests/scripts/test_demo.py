"""Mirrors ``scripts/demo.py``."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest

from deepmlf_llm.data.clean import standardise
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.data.store import open_store
from scripts import demo


@pytest.fixture(scope="module")
def store(isolated_cache):
    return open_store(embedded_dataset(sizes=(40, 10, 20)))


def test_earlier_runs_stay(tmp_path):
    names = []
    for _ in range(3):
        directory = demo.free_directory(tmp_path, "demo")
        directory.mkdir()
        names.append(directory.name)
    assert names == ["demo", "demo-2", "demo-3"]


def test_predictions_read_raw_features(store, tmp_path):
    """Standardised again, as a prediction does, the written features are those of the data set."""
    test = store.split("test")
    demo.write_utterances(tmp_path / "lines.jsonl", test, store.modalities)
    rows = demo.read_lines(tmp_path / "lines.jsonl")
    assert list(rows) == test.ids
    for item in test:
        row = rows[item["id"]]
        assert row["text"] == item["text"]
        for name, facts in store.modalities.items():
            assert (row[name] is None) == (len(item[name]) == 0)
            if row[name] is not None:
                again, _ = standardise(np.array(row[name]), facts["standardisation"])
                np.testing.assert_allclose(again, item[name], atol=1e-4)


def test_report_shows_misleading_words_and_every_head(store, capsys):
    test = store.split("test")
    heads = zip(test.ids, test.labels, test.unimodal["T"], strict=True)
    predictions = {
        name: {"polarity": float(y), "text_polarity": float(words), "av_polarity": -float(y), "label": "neutral"}
        for name, y, words in heads
    }
    demo.report(test, "mosi", predictions)
    output = capsys.readouterr().out
    for name in demo.HEADS.values():
        assert name in output
    assert "0.000" in output


def test_failed_step_ends_the_demo_with_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"make demo: error: python missing\.py ended with code 2"):
        demo.step(["python", "missing.py"])


def test_it_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    scripts = tmp_path / ".venv" / "bin"
    assert demo.next_step(scripts) == "To train on your data: the commands of README.md."
    scripts.mkdir(parents=True)
    (scripts / "activate").touch()
    assert "source .venv/bin/activate, then" in demo.next_step(scripts)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    assert "activate" not in demo.next_step(scripts)


OTHERS = ("Warning", "[INFO]", "[WARNING]", "it/s]", "{'", "site-packages")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_runs_to_the_end_on_a_toy(tmp_path, monkeypatch, capfd, repository):
    monkeypatch.chdir(repository)
    with socket.create_server(("127.0.0.1", 0)) as free:  # the launcher's own default may be another test's
        port = free.getsockname()[1]
    launcher = [*demo.processes(), "--master_port", str(port)]
    monkeypatch.setattr(demo, "processes", lambda: launcher)
    assert demo.main(["--base_model", "tiny-llama", "--num_train_epochs", "1"], tmp_path) == 0
    run = tmp_path / "demo"
    assert json.loads((run / "result.json").read_text())["metrics"]["test"].keys() >= {"mae", "corr"}
    assert set(json.loads((run / "evaluation.json").read_text())["metrics"]) >= {"mae", "corr"}
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 300
    output = "".join(capfd.readouterr())
    assert "$ deepspeed" in output
    assert "To train on your data" in output
    assert len(output.splitlines()) <= 45  # `make setup` says up to seven more
    assert not [line for line in output.splitlines() if any(word in line for word in OTHERS)]
