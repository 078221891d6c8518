from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepmlf_llm.errors import RunError
from deepmlf_llm.training import checkpoints, run_directory
from deepmlf_llm.training.run_directory import RunDirectory


def directory(path: Path, fingerprint: str = "f", facts: dict[str, Any] | None = None, **settings: Any) -> RunDirectory:
    facts = {"processes": 1, "data": "1-2-3", "base_model": "tiny", **(facts or {})}
    return RunDirectory(path, settings or {"seed": 1}, fingerprint, facts)


def claim(run: RunDirectory) -> None:
    """A run that makes its first step."""
    with run.claimed(main=True):
        run.begin()


def test_a_new_run_writes_its_settings_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    claim(directory(path, seed=1, gate="tanh", revision=None))
    assert yaml.safe_load((path / "config.yaml").read_text()) == {"seed": 1, "gate": "tanh"}
    stored = json.loads((path / "run.json").read_text())
    facts = {"processes": 1, "data": "1-2-3", "base_model": "tiny"}
    assert stored == {"schema": 1, "begun": True, "fingerprint": "f", "order": 2, **facts, "worlds": []}
    claim(directory(path, seed=1, gate="tanh"))


def test_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    claim(directory(tmp_path, seed=1, gate="tanh", output_dir="x"))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    words = r"holds another run \(gate='tanh' there, 'none' here; seed=1 there, 2 here\)"
    with pytest.raises(RunError, match=words):
        directory(tmp_path, "g", seed=2, gate="none", output_dir="y").check()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


UNREADABLE = "its config.yaml cannot be read"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- 1\n", UNREADABLE),
        ("5\n", UNREADABLE),
        ("a: [\n", UNREADABLE),
        ("1: 2\n", "1=2 there"),
        ("objective: {1: 2}\n1: 3\n", "objective.1=2 there"),
    ],
)
def test_settings_that_were_damaged_are_named(tmp_path: Path, content: str, words: str) -> None:
    claim(directory(tmp_path))
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(RunError, match=rf"holds another run \(.*{re.escape(words)}"):
        directory(tmp_path, "g").check()


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="holds something that is not a run"):
        directory(tmp_path).check()
    with pytest.raises(RunError, match="is a file"):
        directory(tmp_path / "thesis.tex").check()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_cannot_share_it(tmp_path: Path) -> None:
    with directory(tmp_path).claimed(main=True):
        with pytest.raises(RunError, match="another process is training there"):
            claim(directory(tmp_path))
    claim(directory(tmp_path))


def test_result_appears_whole_and_without_nan(tmp_path: Path) -> None:
    run = directory(tmp_path)
    assert run.finished() is None
    run.write_result({"metrics": {"corr": float("nan"), "mae": 1.0}})
    assert run.finished() == {"metrics": {"corr": None, "mae": 1.0}}
    (tmp_path / "result.json").write_text('{"metrics": ')
    with pytest.raises(RunError, match="damaged; delete it"):
        run.finished()


def test_adapter_is_replaced_as_a_whole(tmp_path: Path) -> None:
    run = directory(tmp_path)
    for content in ("old", "new"):
        run.adapter_aside.mkdir()
        (run.adapter_aside / content).write_text("")
        run.publish_adapter()
    assert [p.name for p in run.adapter.iterdir()] == ["new"]
    assert not run.adapter_aside.exists()


STEP = {"utterances": 8, "per_epoch": 5}


def test_facts_that_differ_are_named_with_both_values(tmp_path: Path) -> None:
    same: dict[str, Any] = {"init_from": "aa", "step": STEP}
    claim(directory(tmp_path, facts=same, seed=1, objective={"gamma": 0.1}))
    cases: dict[str, dict[str, Any]] = {
        r"the data: another valid split": {"data": "1-9-3"},
        r"the data: '1-2-3' there, 'mine' here": {"data": "mine"},
        r"base_model: 'tiny' there, 'big' here": {"base_model": "big"},
        r"init_from: 'aa' there, 'bb' here": {"init_from": "bb"},
        r"utterances a step, at most: 8 there, 12 here": {"processes": 3, "step": {**STEP, "utterances": 12}},
        r"steps an epoch: 5 there, 4 here": {"processes": 8, "step": {**STEP, "per_epoch": 4}},
    }
    for words, facts in cases.items():
        with pytest.raises(RunError, match=rf"holds another run \({words}"):
            directory(tmp_path, "g", {**same, **facts}, seed=1, objective={"gamma": 0.1}).check()
    with pytest.raises(RunError, match=r"\(the data: '1-2-3' there, 'x' here; objective.gamma=0.1 there"):
        directory(tmp_path, "g", {**same, "data": "x", "processes": 4}, seed=1, objective={"gamma": 0.2}).check()


def test_a_run_may_go_on_in_another_world(tmp_path: Path) -> None:
    """What differs is noted, and the run that goes on leaves its own world for the next one to compare with."""
    two = {"deepspeed": {"zero_optimization": {"stage": 2}}, "init_from": "aa", "step": STEP}
    claim(directory(tmp_path, facts=two, seed=1, batch_size=8))
    other = {**two, "deepspeed": {"zero_optimization": {"stage": 3}}, "processes": 2, "init_from": None}
    moved = directory(tmp_path, "g", other, seed=1, batch_size=32, per_device_train_batch_size=4)
    moved.check()
    assert {difference.name for difference in moved.changed} == {
        *("processes", "deepspeed", "batch_size", "per_device_train_batch_size"),
    }
    with moved.claimed(main=True):
        moved.enter_world(12, processes=2, zero_stage=3)
    stored = json.loads((tmp_path / "run.json").read_text())
    assert (stored["processes"], stored["fingerprint"], stored["init_from"]) == (2, "g", "aa")
    assert stored["worlds"] == [{"from_step": 12, "processes": 2, "zero_stage": 3}]
    back = directory(tmp_path, "g", other, seed=1, batch_size=32, per_device_train_batch_size=4)
    back.check()
    assert back.changed == []
    none = directory(tmp_path, "h", {**two, "deepspeed": None}, seed=1, batch_size=8)
    none.check()
    assert "the engine: ZeRO 3 there, no DeepSpeed here" in [difference.words for difference in none.changed]
    moved = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    away = directory(tmp_path, "i", {**two, "deepspeed": moved}, seed=1, batch_size=8)
    away.check()
    assert any("ZeRO 3 and optimizer on cpu here" in difference.words for difference in away.changed)


def test_a_run_of_an_earlier_version_stays_in_its_world(tmp_path: Path) -> None:
    claim(directory(tmp_path, seed=1))
    facts = json.loads((tmp_path / "run.json").read_text())
    del facts["order"], facts["worlds"]
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert directory(tmp_path, seed=1).order == 1
    with pytest.raises(RunError, match=r"goes on only as it was begun \(the number of processes: 1"):
        directory(tmp_path, "g", {"processes": 2}, seed=1).check()


def test_a_run_without_a_first_step_leaves_no_claim(tmp_path: Path) -> None:
    place = tmp_path / "run"

    def fail() -> None:
        with directory(place, seed=1).claimed(main=True):
            (place / "metrics.jsonl").write_text("")
            (place / "tensorboard").mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not place.exists()
    claim(directory(place, "g", seed=2))  # whoever comes next


def test_a_run_that_is_cut_while_it_takes_back_its_files_leaves_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    forget = run_directory.forget

    def cut(path: Path) -> None:
        if len(gone) == 3:
            raise KeyboardInterrupt
        gone.append(path.name)
        forget(path)

    def fail() -> None:
        with directory(tmp_path / "run", seed=1).claimed(main=True):
            monkeypatch.setattr(run_directory, "forget", cut)
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "config.yaml" in gone
    monkeypatch.setattr(run_directory, "forget", forget)
    claim(directory(tmp_path / "run", "g", seed=2))


def test_a_kill_before_the_first_step_leaves_no_claim_either(tmp_path: Path) -> None:
    with directory(tmp_path, seed=1).claimed(main=True):
        left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name, content in left.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "libraries.log").write_text("")
    directory(tmp_path, "g", seed=2).check()
    claim(directory(tmp_path, "g", seed=2))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"seed": 2}


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "tensorboard/events"])
def test_what_a_user_wrote_is_no_leftover_of_a_run(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(RunError, match=rf"holds something that is not a run \({name.partition('/')[0]}\)"):
        claim(directory(tmp_path))
    assert mine.read_text() == "mine"


def test_a_begun_run_outlives_a_stop_while_leftovers_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(directory(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("{}")
    (tmp_path / ".checkpoint-4-ab12cd").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())

    forget = run_directory.forget

    def stopped(path: Path) -> None:
        if path.name.startswith(".checkpoint"):
            raise KeyboardInterrupt
        forget(path)

    monkeypatch.setattr(run_directory, "forget", stopped)
    with pytest.raises(KeyboardInterrupt):
        claim(directory(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_another_run_that_came_first_is_left_whole(tmp_path: Path) -> None:
    late = directory(tmp_path, "g", seed=2)
    late.check()  # nothing there yet
    first = directory(tmp_path, seed=1)
    with first.claimed(main=True):
        first.begin()
    first.write_result({"mae": 1.0})
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RunError, match="seed=1 there, 2 here"):
        claim(late)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_failure_after_the_first_step_keeps_the_directory(tmp_path: Path) -> None:
    run = directory(tmp_path / "run", seed=1)

    def fail() -> None:
        with run.claimed(main=True):
            run.begin()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(RunError, match="seed=1 there, 2 here"):
        directory(tmp_path / "run", "g", seed=2).check()


def test_what_kills_left_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    claim(directory(tmp_path))
    for name in (".checkpoint-4-ab12cd", "..adapter.partial-x1", ".adapter.partial", ".adapter.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"half")
    (tmp_path / ".run.json.partial").write_text("{")
    (tmp_path / ".mine").write_text("a user's own")
    with directory(tmp_path).claimed(main=True):
        with pytest.raises(RunError, match="another process"):  # whose files are not touched
            claim(directory(tmp_path))
        (tmp_path / ".checkpoint-8-live").mkdir()
        with pytest.raises(RunError, match="another process"):
            claim(directory(tmp_path))
        assert (tmp_path / ".checkpoint-8-live").is_dir()
    claim(directory(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".mine", "config.yaml", "run.json"}


def checkpoint(run: Path, step: int, best: int | None = None, whole: bool = True) -> Path:
    path = run / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"best_global_step": best, "loss": float("nan")}))
    if whole:
        checkpoints.commit(path)
    return path


def test_cut_checkpoints_are_removed_and_damaged_ones_named(tmp_path: Path) -> None:
    claim(directory(tmp_path))
    good, cut, damaged = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, whole=False), checkpoint(tmp_path, 6)
    (damaged / "trainer_state.json").write_text("{}")
    found, notes = directory(tmp_path).resume_from()
    assert found == good
    assert notes == [
        "skipped checkpoint-6: trainer_state.json is damaged",
        "skipped checkpoint-4: it was cut while being written",
    ]
    assert damaged.exists()
    assert not cut.exists()


def test_a_checkpoint_without_its_best_one_is_skipped(tmp_path: Path) -> None:
    claim(directory(tmp_path))
    best = checkpoint(tmp_path, 2, best=2)
    checkpoint(tmp_path, 4, best=2)
    assert directory(tmp_path).resume_from()[0] == tmp_path / "checkpoint-4"
    (best / "trainer_state.json").write_text("{}")
    found, notes = directory(tmp_path).resume_from()
    assert found is None
    assert notes[0].startswith("skipped checkpoint-4: the best one until then, checkpoint-2, is not whole")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners of files")
@pytest.mark.parametrize("where", ["run", "checkpoint", "file", "best"])
def test_what_others_could_have_written_is_not_gone_on_with(tmp_path: Path, where: str) -> None:
    claim(directory(tmp_path))
    best = checkpoint(tmp_path, 2, best=2)
    newest = checkpoint(tmp_path, 4, best=2)
    open_to_all = {"run": tmp_path, "checkpoint": newest, "file": newest / "trainer_state.json", "best": best}[where]
    os.chmod(open_to_all, 0o777)
    with pytest.raises(RunError, match=r"can be written by everybody: .* add --trust_run"):
        directory(tmp_path).resume_from()
    assert directory(tmp_path).resume_from(trusted=True)[0] == newest


def test_a_key_that_the_run_there_is_older_than_is_no_difference_while_at_rest(tmp_path: Path) -> None:
    claim(directory(tmp_path, seed=1))
    later = directory(tmp_path, "g", seed=2, modality_dropout=0.0, av_encoder={"pool": "after"}, frame_dropout=0.1)
    with pytest.raises(
        RunError, match=r"holds another run \(frame_dropout=0.0 there, 0.1 here; seed=1 there, 2 here\)"
    ):
        later.check()
