from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepmlf_llm.backbones.text_cache import TextCache
from deepmlf_llm.commands.train import take_seeds
from deepmlf_llm.errors import ConfigError, RunError
from deepmlf_llm.training import assemble, seeds
from deepmlf_llm.training import run as run_module
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.seeds import parse_seeds, run_seeds
from deepmlf_llm.training.settings import RunSettings

MakeSettings = Callable[..., RunSettings]
pytestmark = pytest.mark.usefixtures("cheap_runs")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-4", [0, 1, 2, 3, 4]), ("0,1,2", [0, 1, 2]), ("7", [7]), ("3-4, 0", [3, 4, 0]), ("2-2", [2])],
)
def test_a_list_of_seeds(text: str, expected: list[int]) -> None:
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "4-0", "1,1", "0-2,1", "-1", "1.5", "0-5000", "4294967296", "1,,2", "0 1"])
def test_what_is_no_list_of_seeds_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--seeds {text}:"):
        parse_seeds(text)


def test_too_many_seeds_are_refused_in_any_number_of_parts() -> None:
    with pytest.raises(ConfigError, match="more than 1000 seeds"):
        parse_seeds("0-999,1000")


def test_seeds_on_the_command_line() -> None:
    assert take_seeds(["--seeds", "0-1", "--gate", "tanh"]) == (["--gate", "tanh"], [0, 1])
    assert take_seeds(["--gate=tanh", "--seeds=3,4"]) == (["--gate=tanh"], [3, 4])
    assert take_seeds(["--seed", "3"]) == (["--seed", "3"], None)
    for words in (["--seeds"], ["--seeds", "--gate", "tanh"], ["--seeds", "1", "--seed", "2"], ["--seeds=1"] * 2):
        with pytest.raises(ConfigError, match="--seeds"):
            take_seeds(words)


def left_by(run: Path) -> dict[str, bytes]:
    return {name: (run / "adapter" / name).read_bytes() for name in ("adapter_model.safetensors",)}


@pytest.mark.parametrize(
    "changes",
    [
        {"ffw_scope": "fusion", "text_cache": "memory"},
        {"freeze_fusion_tokens": True, "text_cache": "memory", "text_cache_dtype": "bfloat16"},
        {"lora_r": 2, "lora_dropout": 0.1},
    ],
    ids=["texts", "texts and frozen tokens", "LoRA"],
)
def test_each_seed_ends_as_if_it_had_run_alone_on_one_base_that_is_loaded_once(
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    values = {"max_steps": 3, "batch_size": 16, **changes}
    alone = {}
    for seed in (5, 6):
        place = tmp_path / f"alone-{seed}"
        alone[seed] = run_training(toy_settings(seed=seed, output_dir=str(place), **values), toy_data)
    calls: list[str] = []
    load, read = assemble.load_base, TextCache._read
    monkeypatch.setattr(assemble, "load_base", lambda *a: (calls.append("base"), load(*a))[1])
    monkeypatch.setattr(
        TextCache, "_read", lambda self, texts: (calls.extend(["text"] * len(texts)), read(self, texts))[1]
    )
    summary = run_seeds(toy_settings(output_dir=str(tmp_path / "all"), **values), [5, 6], toy_data)
    assert calls.count("base") == 1
    texts = {item["text"] for split in toy_data.splits().values() for item in split.items}  # type: ignore[attr-defined]
    assert calls.count("text") == (len(texts) + 2 if "text_cache" in changes else 0)  # and two to tell the size
    for seed, expected in alone.items():
        found = json.loads((tmp_path / "all" / f"seed-{seed}" / "result.json").read_text())
        assert found["metrics"] == json.loads(json.dumps(expected["metrics"]))
        assert found["seed"] == seed
        assert left_by(tmp_path / "all" / f"seed-{seed}") == left_by(tmp_path / f"alone-{seed}")
    assert json.loads((tmp_path / "all" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    maes = [result["metrics"]["validation"]["mae"] for result in alone.values()]
    assert summary["validation"]["mae"]["mean"] == pytest.approx(sum(maes) / 2)
    assert "| validation | mean" in (tmp_path / "all" / "summary.md").read_text()


class Killed(BaseException):
    """Nothing of the run may clean up after it."""


def test_a_killed_seed_goes_on_and_a_finished_one_is_not_run_again(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy_settings(max_steps=2, batch_size=16, fusion_layers=[1], num_layers=2, av_encoder__num_layers=0)
    whole = run_seeds(settings.changed(output_dir=str(tmp_path / "whole")), [1, 2], toy_data)
    conclude, ended = run_module._Run.conclude, []

    def killed_in_the_second(self: Any, *args: Any) -> Any:
        ended.append(self.settings.trainer["seed"])
        if ended == [1, 2]:
            raise Killed
        return conclude(self, *args)

    monkeypatch.setattr(run_module._Run, "conclude", killed_in_the_second)
    with pytest.raises(Killed):
        run_seeds(settings, [1, 2], toy_data)
    first = (tmp_path / "run" / "seed-1" / "result.json").stat().st_mtime_ns
    assert not (tmp_path / "run" / "summary.json").exists()
    assert run_seeds(settings, [1, 2], toy_data) == whole
    assert ended == [1, 2, 2]
    assert (tmp_path / "run" / "seed-1" / "result.json").stat().st_mtime_ns == first
    for name in ("seed-1", "seed-2"):
        assert left_by(tmp_path / "run" / name) == left_by(tmp_path / "whole" / name)


def test_what_seeds_cannot_do_is_refused_before_anything_is_written(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="--seeds with --ds zero2"):
        run_seeds(toy_settings(deepspeed="zero2"), [0, 1], toy_data)
    with monkeypatch.context() as patch:
        patch.setattr(seeds, "detect", lambda: Launch("torchrun", processes=2))
        with pytest.raises(ConfigError, match="--seeds with 2 processes"):
            run_seeds(toy_settings(), [0, 1], toy_data)
    assert not (tmp_path / "run").exists()
    assert run_seeds(toy_settings(), [3], toy_data, dry_run=True)["status"] == "planned"
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(RunError, match="holds one run; --seeds needs a directory of its own"):
        run_seeds(toy_settings(), [0, 1], toy_data)


def test_without_a_name_the_directory_is_the_same_for_any_seed_and_not_a_runs(
    toy_settings: MakeSettings, toy_data: TrainingData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    places = []
    monkeypatch.setattr(seeds, "run_training", lambda settings, *_: places.append(settings.output_dir) or {})
    for given in ({}, {"seed": 3}):
        run_seeds(toy_settings(output_dir=None, **given), [8], toy_data, dry_run=True)
    assert places[0] == places[1]
    assert Path(places[0]).parts[0] == "runs"
    assert Path(places[0]).parent.name.endswith("-seeds")
    assert Path(places[0]).name == "seed-8"
