"""Mirrors ``deepmlf_llm/ablation/`` and ``commands/ablate.py``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pyarrow import parquet

from deepmlf_llm.ablation import AblationPlan, runner
from deepmlf_llm.ablation.store import Store
from deepmlf_llm.commands import ablate
from deepmlf_llm.data.folds import Fold
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.errors import ConfigError, DataError, RunError
from deepmlf_llm.training import run, scores

RECIPE = {
    "base_model": "tiny-llama",
    "batch_size": 8,
    "max_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "fusion_layers": [3],
    "num_fusion_tokens": 2,
    "av_encoder": {"num_layers": 1},
    "report_to": "none",
}
FOLDS = 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of 24 utterances of six videos, and an ablation file over them."""
    home = tmp_path_factory.mktemp("ablation")
    random = np.random.default_rng(0)
    source = home / "clips.jsonl"
    with source.open("w") as file:
        for row in range(24):
            label = float(np.round(random.uniform(-3, 3), 1))
            frames = random.normal(size=(3, 2)).round(3).tolist()
            split = ("train", "valid", "test")[row % 3]
            record = {"id": f"v{row % 6}$_${row}", "text": f"it was {row}", "label": label, "audio": frames}
            file.write(json.dumps({**record, "split": split}) + "\n")
    for fold in range(FOLDS):
        prepare(source, "mosi", home / f"fold-{fold}", fold=Fold(fold, FOLDS))
    (home / "recipe.yaml").write_text(dumped(RECIPE))
    (home / "plan.yaml").write_text(dumped(content(home)))
    return home


def dumped(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False)  # the order of variants is the table's


def content(home: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "toy",
        "title": "A toy",
        "config": str(home / "recipe.yaml"),
        "data": [str(home / f"fold-{fold}") for fold in range(FOLDS)],
        "seeds": "0-1",
        "reference": "as it is",
        "variants": {
            "heard": {"as it is": {}, "text alone": {"modalities": "none"}},
            "baselines": {"constant": {"baseline": "constant"}},
        },
        **changes,
    }


@pytest.fixture(scope="module")
def done(home: Path) -> Path:
    with pytest.MonkeyPatch.context() as patched:  # what takes most of the time of so small runs
        patched.setattr(scores, "metric_intervals", lambda *_: {})
        patched.setattr(scores, "write_plots", lambda *_: None)
        patched.setattr(run, "environment", dict)
        ablate.main([str(home / "plan.yaml"), "--output", str(home / "out"), "--resamples", "200"])
    return home / "out"


def rows_of(directory: Path, variant: str, seed: int, split: str) -> dict[str, tuple[float, float]]:
    """id -> label and prediction, read without the package."""
    table = parquet.read_table(directory / "predictions.parquet").to_pylist()
    mine = [r for r in table if (r["variant"], r["seed"], r["split"]) == (variant, seed, split)]
    assert len({row["id"] for row in mine}) == len(mine)
    return {row["id"]: (row["label"], row["polarity"]) for row in mine}


def test_every_utterance_is_tested_once_by_each_seed(done: Path) -> None:
    for variant, seeds in (("as it is", 2), ("text alone", 2), ("constant", 1)):
        for seed in range(seeds):
            assert all(len(rows_of(done, variant, seed, split)) == 24 for split in ("test", "valid"))
    assert not rows_of(done, "constant", 1, "test")
    assert not list(done.glob("runs/**/checkpoint-*"))
    assert len(list(done.glob("runs/**/adapter"))) == 2 * 2 * FOLDS


def test_the_table_says_what_the_predictions_say(done: Path) -> None:
    numbers = json.loads((done / "ablation.json").read_text())
    page = (done / "ablation.md").read_text()
    error = {
        variant: np.mean(
            [
                np.mean([abs(label - said) for label, said in rows_of(done, variant, seed, "test").values()])
                for seed in range(2)
            ]
        )
        for variant in ("as it is", "text alone")
    }
    found = next(d for d in numbers["test"]["differences"] if (d["other"], d["metric"]) == ("text alone", "mae"))
    assert found["difference"] == pytest.approx(error["text alone"] - error["as it is"], abs=1e-5)
    assert found["seeds_paired"]
    line = next(line for line in page.splitlines() if line.startswith("| text alone |"))
    assert f"{error['text alone']:.3f}".replace("0.", ".", 1) in line
    assert '`modalities: "none"`' in line
    assert re.findall("^## (.*)", page, re.MULTILINE) == ["Heard", "Baselines"]
    lines = [line for line in page.splitlines() if line.startswith("- MAE on")]
    shown = {
        split: [d for d in numbers[split]["differences"] if d["metric"] == "mae"] for split in ("validation", "test")
    }
    for line, (split, differences) in zip(lines, shown.items(), strict=True):
        told = [d["other"] for d in differences if (d["p_adjusted"] or 1) < 0.05]
        assert line.startswith(f"- MAE on {split}: shown to be better: ")
        assert line.endswith(f"no difference is shown for the other {len(differences) - len(told)}.")
        assert all(f"*{name}*" in line for name in told)
    assert (done / "ablation.svg").read_text().count("<svg") == 1


def test_the_report_needs_the_stored_results_alone(done: Path, home: Path, tmp_path: Path) -> None:
    for name in ("predictions.parquet", "variants.json"):
        shutil.copy(done / name, tmp_path / name)
    ablate.main([str(home / "plan.yaml"), "--output", str(tmp_path), "--report", "--resamples", "200"])
    for name in ("ablation.md", "ablation.svg", "ablation.json"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes(), name


def test_results_of_other_settings_are_left_out_of_the_report(done: Path, home: Path, tmp_path: Path) -> None:
    for name in ("predictions.parquet", "variants.json"):
        shutil.copy(done / name, tmp_path / name)
    variants = content(home)["variants"]
    variants["heard"]["text alone"]["gate"] = "tanh"
    (home / "stale.yaml").write_text(dumped(content(home, variants=variants)))
    words = ["--output", str(tmp_path), "--report", "--resamples", "200"]
    ablate.main([str(home / "stale.yaml"), *words])
    page = (tmp_path / "ablation.md").read_text()
    assert "Left out, because their stored results are of other settings: text alone." in page
    assert "| text alone |" not in page
    assert "text alone" not in (tmp_path / "ablation.json").read_text()
    (home / "stale.yaml").write_text(dumped(content(home, reference="text alone", variants=variants)))
    with pytest.raises(RunError, match="no whole run of the reference 'text alone' as it is set"):
        ablate.main([str(home / "stale.yaml"), *words])


def test_what_is_stored_is_not_run_again(done: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int, list[int]]] = []

    def train(variant: Any, data: str, place: Path, seeds: Any) -> dict[int, Path]:
        ran.append((variant.name, int(data[-1]), list(seeds)))
        return dict.fromkeys(seeds, home / "out" / "runs" / "as-it-is" / place.name / "seed-0")

    monkeypatch.setattr(runner, "_train", train)
    copy = home / "copy"
    shutil.copytree(done, copy)
    variants = content(home)["variants"]
    variants["heard"]["text alone"]["gate"] = "tanh"  # other settings: the stored results are not this variant's
    (home / "more.yaml").write_text(dumped(content(home, seeds="0-2", variants=variants)))
    shutil.rmtree(copy / "runs")
    runner.run_ablation(AblationPlan.from_yaml(home / "more.yaml"), copy, say=lambda _: None)
    assert ran == [
        *(("as it is", fold, [2]) for fold in range(FOLDS)),
        *(("text alone", fold, [0, 1, 2]) for fold in range(FOLDS)),
    ]
    stored = Store(copy).facts["variants"]
    assert stored["text alone"]["changes"] == {"modalities": "none", "gate": "tanh"}


def test_stored_results_of_other_data_are_refused(done: Path, home: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "out")
    turned = [str(home / f"fold-{fold}") for fold in (1, 0, 2)]
    (tmp_path / "turned.yaml").write_text(dumped(content(home, data=turned)))
    before = (tmp_path / "out" / "variants.json").read_bytes()
    with pytest.raises(DataError, match=r"results of 'as it is' were made from other data than .*fold-1 holds now"):
        runner.run_ablation(AblationPlan.from_yaml(tmp_path / "turned.yaml"), tmp_path / "out", say=lambda _: None)
    assert (tmp_path / "out" / "variants.json").read_bytes() == before


def test_runs_of_other_data_are_not_taken_in(done: Path, home: Path, tmp_path: Path) -> None:
    """A baseline's runs that lie there, where what was stored of them is gone."""
    shutil.copytree(done / "runs" / "constant", tmp_path / "out" / "runs" / "constant")
    turned = [str(home / f"fold-{fold}") for fold in (1, 0, 2)]
    (tmp_path / "turned.yaml").write_text(dumped(content(home, data=turned)))
    plan = AblationPlan.from_yaml(tmp_path / "turned.yaml")
    with pytest.raises(DataError, match=r"results of 'constant' were made from other data than .*fold-1 holds now"):
        runner.run_ablation(plan, tmp_path / "out", ["constant"], say=lambda _: None)
    assert not (tmp_path / "out" / "variants.json").exists()


def test_the_report_has_the_folds_and_seeds_of_its_plan_alone(done: Path, home: Path, tmp_path: Path) -> None:
    smaller = content(home, data=[str(home / "fold-0")], seeds="1")
    del smaller["variants"]["baselines"]
    (tmp_path / "smaller.yaml").write_text(dumped(smaller))
    plan = AblationPlan.from_yaml(tmp_path / "smaller.yaml")
    entries = Store(done).entries(plan.variants, len(plan.data), "test")
    table = parquet.read_table(done / "predictions.parquet").to_pylist()
    for name in ("as it is", "text alone"):
        rows = [r for r in table if (r["variant"], r["part"], r["seed"], r["split"]) == (name, 0, 1, "test")]
        assert entries[name].seeds == ["seed-1"]
        assert entries[name].runs[0].ids == [row["id"] for row in rows]


def test_a_variant_may_have_data_of_its_own(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same utterances, prepared otherwise; the fingerprints of the others stay as they were."""
    plain = {variant.name: variant.fingerprint for variant in AblationPlan.from_yaml(home / "plan.yaml").variants}
    own = [str(home / f"own-{fold}") for fold in range(FOLDS)]
    for fold in range(FOLDS):
        for name, held in (("own", fold), ("turned", (fold + 1) % FOLDS)):
            place = home / f"{name}-{fold}"
            prepare(home / "clips.jsonl", "mosi", place, fold=Fold(held, FOLDS), standardised_by="video")
    variants = content(home)["variants"]
    variants["heard"]["by video"] = {"data": own}
    variants["baselines"]["bam by video"] = {"baseline": "bam", "data": own}
    (home / "own.yaml").write_text(dumped(content(home, variants=variants)))
    plan = AblationPlan.from_yaml(home / "own.yaml")
    assert {v.name: v.fingerprint for v in plan.variants if v.name in plain} == plain
    reference, by_video = plan.variants[0], next(v for v in plan.variants if v.name == "by video")
    assert (list(reference.data), list(by_video.data)) == (list(plan.data), own)
    assert by_video.fingerprint != reference.fingerprint
    seen: list[tuple[str, str]] = []

    def run(variant: Any, data: str, place: Path, seeds: Any) -> dict[int, Path]:
        settings = [
            variant.baseline_settings(data, place, 0) if variant.baseline else variant.run_settings(data, place)
        ]
        seen.extend((variant.name, setting.data) for setting in settings)
        return {}

    monkeypatch.setattr(runner, "_train", run)
    monkeypatch.setattr(runner, "_fit", run)
    runner.run_ablation(plan, tmp_path, ["by video", "bam by video", "as it is"], say=lambda _: None)
    expected = [("as it is", list(plan.data)), ("by video", own), ("bam by video", own)]
    assert seen == [(name, data) for name, parts in expected for data in parts]
    for wrong, message in (
        ([str(home / f"turned-{fold}") for fold in range(FOLDS)], "expected the validation and test utterances of"),
        (own[:1], "data: 1 directories, expected as many as the ablation has, 3"),
        ([own[0], own[0], own[1]], "expected a data directory, or a list of different ones"),
    ):
        variants["heard"]["by video"] = {"data": wrong}
        (home / "wrong.yaml").write_text(dumped(content(home, variants=variants)))
        with pytest.raises((ConfigError, DataError), match=message):
            runner.run_ablation(AblationPlan.from_yaml(home / "wrong.yaml"), tmp_path, say=lambda _: None)


def test_a_cut_variant_goes_on(done: Path, home: Path, tmp_path: Path) -> None:
    """A seed that lacks a fold has no place in the table; the reference must be there."""
    plan = AblationPlan.from_yaml(home / "plan.yaml")
    store = Store(home / "out")
    del store.facts["variants"]["text alone"]["runs"]["2/1"]
    assert store.missing(plan.named(["text alone"])[0], 2) == [1]
    assert [len(e.runs) for e in store.entries(plan.variants, FOLDS, "test").values()] == [2, 1, 1]
    with pytest.raises(RunError, match="no whole run of the reference 'as it is'"):
        ablate.main([str(home / "plan.yaml"), "--output", str(tmp_path), "--report"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "as it was"}, "reference='as it was': no variant (did you mean 'as it is'?)"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"seeds": "2-1"}, "--seeds 2-1"),
        ({"data": []}, "no data"),
        (
            {"variants": {"g": {"as it is": {"gait": "tanh"}}}},
            "variants: as it is: unknown key 'gait' (did you mean 'gate'?)",
        ),
        ({"variants": {"g": {"as it is": {}, "As It Is": {}}}}, "makes the folder 'as-it-is', as another one"),
        ({"variants": {"g": {"as it is": {}, "b": {"baseline": "rich"}}}}, "variants: b: kind='rich'"),
        ({"variants": ["as it is"]}, "expected group -> variant"),
    ],
)
def test_mistakes_are_named(home: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "plan.yaml").write_text(dumped(content(home, **changes)))
    with pytest.raises(ConfigError, match=r"plan\.yaml") as refused:
        AblationPlan.from_yaml(tmp_path / "plan.yaml")
    assert message in str(refused.value)


def test_unknown_names_missing_data_and_another_store(home: Path, tmp_path: Path) -> None:
    plan = AblationPlan.from_yaml(home / "plan.yaml")
    with pytest.raises(ConfigError, match="no variant and no group 'text alonn'"):
        plan.named(["text alonn"])
    assert [variant.name for variant in plan.named(["heard"])] == ["as it is", "text alone"]
    (tmp_path / "plan.yaml").write_text(dumped(content(home, data="nowhere")))
    with pytest.raises(DataError, match="nowhere"):
        ablate.main([str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")])
    (tmp_path / "variants.json").write_text('{"schema": 7}')
    with pytest.raises(DataError, match="schema 7, this package reads 1"):
        Store(tmp_path)
