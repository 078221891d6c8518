"""Which task a name or a file means; a task of one's own comes back from what a file holds of it."""

from __future__ import annotations

import pytest

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.registry import TASKS, described_ranges, make_task, read_task, task_of
from deepmlf_llm.tasks.regression import Bins


def test_an_unknown_data_set_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"dataset='sim': expected one of mosi, .* \(did you mean 'sims'\?\)"):
        task_of("sim")


def test_ranges_in_words():
    told = "mosi and mosei [-3, 3], sims and simsv2 [-1, 1]; classes: emotion, emotions, sarcasm, mosei_emotions"
    assert described_ranges() == told


def test_names_and_rules_come_back_from_what_a_file_holds():
    for name, task in TASKS.items():
        assert task.name == name
        assert task_of(name) is task_of(task) is task
    scale = make_task(
        "mood", {"range": [0, 10], "bins": [4, 6], "names": ["low", "middle", "high"], "text_case": "lower"}
    )
    moods = make_task("moods", {"classes": ["calm", "tense"], "kind": "multi_label", "class_weights": [1, 2.5]})
    for task in (scale, moods):
        assert task_of(task.name, task.to_dict()) == task
        assert not task.differences(task_of(task.name, task.to_dict()))
    assert (scale.low, scale.high, scale.bins, scale.text_case) == (0, 10, Bins((4.0, 6.0)), "lower")
    assert (moods.several, moods.num_outputs, moods.weights) == (True, 2, (1.0, 2.5))
    assert TASKS["mosi"].to_dict() is None


def test_a_yaml_file_is_a_task_named_after_it_or_as_it_says(tmp_path):
    path = tmp_path / "moods.yaml"
    path.write_text("classes: [calm, tense, glad]\n")
    task = read_task(path)
    assert isinstance(task, ClassificationTask)
    assert (task.name, task.classes, task.several, task.class_weights) == (
        "moods",
        ("calm", "tense", "glad"),
        False,
        "balanced",
    )
    path.write_text("name: valence\nrange: [1, 9]\n")
    assert (read_task(path).name, read_task(path).describe()) == ("valence", "a number in [1, 9]")


def test_differences_name_both_tasks():
    one, other = make_task("a", {"classes": ["x", "y"]}), make_task("b", {"classes": ["y", "x"]})
    assert one.differences(other) == "'a', one of the classes x, y, not 'b', one of the classes y, x"
    assert TASKS["mosi"].differences(one) == "'mosi', a number in [-3, 3], not 'a', one of the classes x, y"
    assert not one.differences(make_task("b", {"classes": ["x", "y"]}))  # the same classes under another name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("range: [3, 1]", "expected two numbers, the lowest and the highest label"),
        ("range: [0, .nan]", "expected two numbers"),
        ("range: [0, 1]\nbins: [2]\nnames: [a, b]", r"bins=\[2\]: expected ascending numbers inside the range"),
        ("range: [0, 1]\nbins: [0.5]\nnames: [a]", "names: 1 of them, expected 2 to 1000"),
        ("range: [0, 1]\nbins: [0.5]\nnames: [a, b, c]", "names: 3 of them, but 1 edges part 2"),
        ("range: [0, 1]\nbins: [0.5]", "bins and names go together"),
        ("range: [0, 1]\nclass: [a, b]", "unknown key 'class'"),
        ("classes: [a, a]", "a stands there twice"),
        ("classes: [a]", "classes: 1 of them, expected 2 to 1000"),
        ("classes: [a, 3]", "expected a list of texts of one line"),
        ("classes: [a, b]\nclass_weights: [1]", "class_weights: expected one number > 0 a class"),
        ("classes: [a, b]\nclass_weights: heavy", "class_weights='heavy': expected 'balanced', 'none' or a list"),
        ("classes: [a, b]\nkind: multi", "kind='multi': expected one of regression, single_label, multi_label"),
        ("classes: [a, b]\nrnage: [0, 1]\ntext_case: upper", "unknown key 'rnage'.*; text_case='upper'"),
        ("name: mosi\nrange: [0, 1]", "'mosi' is a shipped data set"),
        ("name: ../x\nrange: [0, 1]", "a name has up to 64 letters"),
        ("[1, 2]", "expected a mapping"),
        ("range: [0, 1]\nrange: [0, 2]", "the key 'range' stands there twice"),
    ],
)
def test_a_file_that_is_no_task_is_refused_by_name(tmp_path, text, told):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        read_task(path)
    assert str(path) in str(refused.value)


def test_rules_beside_a_shipped_name():
    found = task_of("mosei_emotions", {**TASKS["mosei_emotions"].to_dict(), "class_weights": [2.0] * 6})
    assert found.columns == {7: 1, 6: 0}  # how its own files are read goes with the name
    with pytest.raises(ConfigError, match="'mosi' is a shipped data set"):
        task_of("mosi", {"kind": "regression", "range": [0, 1]})
    with pytest.raises(ConfigError, match="'emotion' is a single_label task"):
        task_of("emotion", {"kind": "multi_label", "classes": ["a", "b"]})
    with pytest.raises(ConfigError, match=r"no/such\.yaml: cannot be read"):
        read_task("no/such.yaml")
