"""Labels that are classes come out alike, whichever form a source has, and what is none is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.report import report_rows
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.data.store import open_store
from deepmlf_llm.errors import DataError
from deepmlf_llm.tasks.registry import TASKS, make_task

NAMES = ["joy", "anger", "calm"]
SORTED = ["anger", "calm", "joy"]
MOODS = make_task("moods", {"classes": NAMES})
SEVERAL = make_task("moods", {"classes": NAMES, "kind": "multi_label"})
CHOSEN = {"train": [0, 1, 2, 0, 1, 0], "valid": [2, 0], "test": [1, 2]}


def lines(write_label):
    for split, chosen in CHOSEN.items():
        for row, k in enumerate(chosen):
            yield {"id": f"{split}{row}", "text": f"so {row}", "mode": split, "audio": [[1.0 * k, row]]} | write_label(
                k
            )


def json_lines(tmp_path, write_label):
    path = tmp_path / "moods.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(write_label)))
    return path


def pickled(write_pickle, column, write_label):
    tree = {
        split: {
            "id": [f"{split}{row}" for row in range(len(chosen))],
            "raw_text": ["so"] * len(chosen),
            "audio": np.ones((len(chosen), 2, 3), np.float32),
            column: write_label(chosen),
        }
        for split, chosen in CHOSEN.items()
    }
    return write_pickle(tree)


def clips(tmp_path, write_label):
    (tmp_path / "audio").mkdir()
    rows = ["video_id,clip_id,text,label,mode"]
    for split, chosen in CHOSEN.items():
        for row, k in enumerate(chosen):
            rows.append(f"{split},{row},so,{write_label(k)},{split}")
            np.save(tmp_path / "audio" / f"{split}$_${row}.npy", np.ones((2, 3), np.float32))
    (tmp_path / "label.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def of(corpus):
    return {split: rows.labels.astype(int).tolist() for split, rows in corpus.splits.items()}


def test_names_and_indices_of_one_class_in_every_form(tmp_path, write_pickle):
    sources = [
        json_lines(tmp_path, lambda k: {"label": NAMES[k]}),
        pickled(write_pickle, "classification_labels", lambda chosen: np.array(chosen)),
        clips(tmp_path / "clips" if (tmp_path / "clips").mkdir() is None else tmp_path, lambda k: NAMES[k]),
    ]
    for source in sources:
        assert of(open_source(source, MOODS)) == CHOSEN, source
    for column, write_label in (
        ("labels", lambda chosen: [NAMES[k].encode() for k in chosen]),
        ("annotations", lambda chosen: [NAMES[k] for k in chosen]),
        ("label", lambda chosen: np.array(chosen, np.float32)[:, None]),
    ):
        assert of(open_source(pickled(write_pickle, column, write_label), MOODS)) == CHOSEN, column
    words = [((["so"], np.ones((1, 4)), np.ones((1, 2))), NAMES[k], f"id{k}") for k in CHOSEN["train"]]
    assert of(open_source(write_pickle({"train": words}), MOODS)) == {"train": CHOSEN["train"]}


def test_several_classes_in_every_form(tmp_path, write_pickle):
    def hot(k):
        return [int(place in (k, 2)) for place in range(3)]

    def names(k):
        return sorted({NAMES[k], NAMES[2]})

    expected = {split: [hot(k) for k in chosen] for split, chosen in CHOSEN.items()}
    for write_label in (lambda k: {"label": names(k)}, lambda k: {"labels": [0.5 * one for one in hot(k)]}):
        assert of(open_source(json_lines(tmp_path, write_label), SEVERAL)) == expected
    vectors = pickled(write_pickle, "classification_labels", lambda chosen: np.eye(3)[chosen] + np.eye(3)[2])
    assert of(open_source(vectors, SEVERAL)) == expected
    assert of(open_source(clips(tmp_path, lambda k: "|".join(names(k))), SEVERAL)) == expected
    empty = open_source(json_lines(tmp_path, lambda k: {"label": []}), SEVERAL)
    assert not empty.splits["train"].labels.any()


def test_csd_rows_of_mosei_are_its_emotions():
    from deepmlf_llm.data.mmsa import read_labels
    from deepmlf_llm.data.source_names import Reading

    row = np.array([[-2.0, 0, 1 / 3, 0, 0, 3, 0]])  # sentiment; happy, sad, anger, surprise, disgust, fear
    (label,) = read_labels(row, Reading("mosei_emotions"), "x")
    assert label.tolist() == [0, 1, 0, 0, 1, 0]
    (alone,) = read_labels(row[:, 1:], Reading("mosei_emotions"), "x")
    assert alone.tolist() == label.tolist()
    assert read_labels(row, Reading("mosei"), "x") == [-2.0]


def test_classes_are_found_in_the_data(tmp_path, write_pickle):
    found = open_source(json_lines(tmp_path, lambda k: {"label": NAMES[k]}), "emotion")
    assert found.task.classes == tuple(SORTED)
    assert of(found)["train"] == [SORTED.index(NAMES[k]) for k in CHOSEN["train"]]
    several = open_source(json_lines(tmp_path, lambda k: {"label": [NAMES[k]]}), "emotions")
    assert several.task.classes == tuple(SORTED)
    counted = open_source(pickled(write_pickle, "labels", lambda chosen: np.array(chosen)), "emotion")
    assert counted.task.classes == ("0", "1", "2")
    assert of(counted) == CHOSEN
    truth = open_source(json_lines(tmp_path, lambda k: {"label": k == 1}), "sarcasm")
    assert of(truth)["train"] == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("storage", ["arrow", "numpy"])
@pytest.mark.parametrize("task", [MOODS, SEVERAL], ids=["one", "several"])
def test_prepared_data_carry_classes_and_weights(tmp_path, storage, task):
    write_label = (lambda k: {"label": [NAMES[k]]}) if task.several else (lambda k: {"label": NAMES[k]})
    source = json_lines(tmp_path, write_label)
    manifest = prepare(source, task, tmp_path / "data", storage=storage)
    store = open_store(tmp_path / "data")
    assert (store.manifest.dataset, store.task.classes, store.task.several) == ("moods", tuple(NAMES), task.several)
    balanced = [1, 2, 5] if task.several else [6 / 9, 1, 2]  # 3, 2 and 1 of 6
    assert store.task.weights == pytest.approx(balanced, rel=1e-5)
    assert store.split("train").labels.shape == ((6, 3) if task.several else (6,))
    item = store.split("test")[1]["label"]
    assert list(item) == [0, 0, 1] if task.several else item == 2.0
    assert ("dataset", f"moods, {task.describe()}") in report_rows(manifest)
    assert dict(report_rows(manifest))["train"].startswith("6 utterances; 3 joy, 2 anger, 1 calm")
    assert prepare(source, task, tmp_path / "data", storage=storage).to_dict() == manifest.to_dict()
    # A test split alone is read under the classes of the data that it is for.
    alone = tmp_path / "test.jsonl"
    alone.write_text(json.dumps({"id": "a", "text": "so", "audio": [[1, 2]]} | write_label(2)) + "\n")
    prepare(alone, task, tmp_path / "alone", like=tmp_path / "data", storage=storage)
    assert open_store(tmp_path / "alone").task == store.task


def test_weights_are_the_tasks_own_or_none(tmp_path):
    source = json_lines(tmp_path, lambda k: {"label": NAMES[k]})
    for given, told in (("none", None), ([1, 2, 3], (1, 2, 3))):
        task = make_task("moods", {"classes": NAMES, "class_weights": given})
        prepare(source, task, tmp_path / str(told), storage="numpy")
        assert open_store(tmp_path / str(told)).task.weights == told


def test_a_class_that_nobody_learns_and_labels_of_one_modality_are_told(tmp_path):
    task = make_task("moods", {"classes": [*NAMES, "fear"]})
    corpus = open_source(json_lines(tmp_path, lambda k: {"label": NAMES[k], "label_T": 0.5}), task)
    assert "no training utterance is of class 'fear': it cannot be learnt" in corpus.notes
    assert any("labels of one modality alone" in note for note in corpus.notes)
    assert not corpus.splits["train"].unimodal


@pytest.mark.parametrize(
    ("task", "label", "told"),
    [
        (
            MOODS,
            "jov",
            r"expected one of the classes joy, anger, calm, but row 0 \('train0'\) is 'jov' \(did you mean 'joy'",
        ),
        (MOODS, 3, r"row 0 \('train0'\) is '3'"),
        (MOODS, -1, r"row 0 \('train0'\) is '-1'"),
        (MOODS, 0.5, "is 0.5 .a number of a scale, no class"),
        (MOODS, None, "is None .no label"),
        (MOODS, ["joy", "calm"], "one class an utterance is expected; a multi_label task has several"),
        (MOODS, {"joy": 1}, "no class"),
        (MOODS, float("inf"), "a number of a scale"),
        (SEVERAL, ["joy", "jov"], "is 'jov'"),
        (SEVERAL, [1, 0], r"row 0 \('train0'\) has 2 numbers for 3 classes"),
        (SEVERAL, [1, -1, 0], "0, or above 0 where the class holds"),
        (SEVERAL, 1, "a list of names is expected"),
        (TASKS["emotion"], "joy", r"1 classes \(joy\): expected 2 to 1000"),
    ],
)
def test_what_is_no_class_is_named(tmp_path, task, label, told):
    source = json_lines(tmp_path, lambda k: {"label": label})
    with pytest.raises(DataError, match=told):
        open_source(source, task)


def test_a_scale_does_not_read_classes_nor_classes_a_scale(tmp_path, write_pickle):
    named = json_lines(tmp_path, lambda k: {"label": NAMES[k]})
    with pytest.raises(DataError, match=r"'mosi' has a number in .* names of classes are labels of another task"):
        open_source(named, "mosi")
    scale = pickled(write_pickle, "regression_labels", lambda chosen: np.array(chosen) / 2)
    with pytest.raises(DataError, match=r"lacks classification_labels.* the labels of 'moods' are one of the classes"):
        open_source(scale, MOODS)


def test_without_labels_nothing_is_asked_of_them(tmp_path):
    corpus = open_source(json_lines(tmp_path, lambda k: {}), MOODS, labelled=False)
    assert [len(rows) for rows in corpus.splits.values()] == [6, 2, 2]


def test_rules_in_a_manifest_that_are_none_are_damage(tmp_path):
    prepare(json_lines(tmp_path, lambda k: {"label": NAMES[k]}), MOODS, tmp_path / "data", storage="numpy")
    path = tmp_path / "data" / "manifest.json"
    content = json.loads(path.read_text())
    content["task"]["classes"] = ["joy", "joy"]
    path.write_text(json.dumps(content))
    (tmp_path / "data" / "manifest.sha256").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: damaged .*joy stands there twice"):
        open_store(tmp_path / "data")
