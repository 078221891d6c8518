from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.errors import BaseModelError, ConfigError, DataError, DeepMLFError, RunError
from deepmlf_llm.training import checkpoints, selection
from deepmlf_llm.training import run as run_module
from deepmlf_llm.training.callbacks import read_metrics
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.place import base_dtype
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.seeds import run_seeds
from deepmlf_llm.training.settings import RunSettings
from tests.devices import rounding

from .conftest import DIMS, Utterances

MakeSettings = Callable[..., RunSettings]
CLOCKS = {"runtime", "samples_per_second", "steps_per_second"}


class Killed(BaseException):
    """Stands for a kill: raised in the middle of a run, and nothing of the run may clean up after it."""


def run_until(
    monkeypatch: pytest.MonkeyPatch, settings: RunSettings, data: TrainingData, step: int, run: Any = run_training
) -> None:
    """A run that is cut just before it would have gone on from ``step``."""
    make = run_module.make_trainer

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise Killed

    def with_kill(*args: Any) -> Any:
        trainer = make(*args)
        trainer.add_callback(Kill())
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "make_trainer", with_kill)
        with pytest.raises(Killed):
            run(settings, data)


def lines_of(settings: RunSettings) -> list[dict[str, Any]]:
    lines = read_metrics(Path(str(settings.output_dir)) / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def weights_of(settings: RunSettings) -> dict[str, torch.Tensor]:
    return load_file(Path(str(settings.output_dir)) / "adapter" / "adapter_model.safetensors")


def test_a_run_leaves_what_it_promises(toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path) -> None:
    result = run_training(toy_settings(), toy_data)
    run = tmp_path / "run"
    assert json.loads((run / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["status"] == "finished"
    assert set(result["metrics"]) == {"validation", "test"}
    assert {"mae", "corr", "acc7", "acc2_has0", "f1_non0"} <= set(result["metrics"]["test"])
    assert result["seed"] == 42
    assert result["train"]["steps"] == 10
    assert result["train"]["parameters"]["trainable"] > 0
    assert result["train"]["fusion_layers"] == [1, 3]
    assert result["config"]["objective"]["lambda_fusion"] == 0.4
    assert result["environment"]["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "run.json", "metrics.jsonl", "result.json", "adapter"}
    assert not [p.name for p in run.iterdir() if "partial" in p.name]
    kinds = [line["kind"] for line in lines_of(toy_settings())]
    assert kinds.count("train") == 10
    assert kinds.count("validation") == kinds.count("gates") == 2


def test_both_readouts_are_trained_measured_and_predicted(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    from deepmlf_llm.inference.predictor import SentimentPredictor

    auxiliary = {"objective__lambda_polarity": 0.05, "objective__lambda_prototypes": 0.1}
    result = run_training(toy_settings(readout="both", max_steps=2, **auxiliary), toy_data)
    assert set(result["heads"]["test"]) == {"fusion", "text", "av", "task", "verbalised"}
    assert result["config"]["readout"] == "both"
    line = next(line for line in lines_of(toy_settings()) if line["kind"] == "train")
    assert {"loss_verbalised", "loss_polarity", "loss_prototypes"} <= set(line)
    predictor = SentimentPredictor.from_pretrained(tmp_path / "run" / "adapter")
    (told,) = predictor.predict(["it went"])
    assert told.polarity == pytest.approx((told.task_polarity + told.verbalised_polarity) / 2, abs=1e-5)
    assert list(told.to_dict())[-2:] == ["task_polarity", "verbalised_polarity"]
    assert predictor.config.verbalised_ids == {
        str(i): predictor.tokenizer(str(i))["input_ids"][-1] for i in range(1, 8)
    }


def test_a_finished_run_is_not_run_again(toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path) -> None:
    first = run_training(toy_settings(max_steps=2), toy_data)
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert run_training(toy_settings(max_steps=2), toy_data) == json.loads(json.dumps(first))
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[RunSettings, dict[str, Any]]]:
    """Gives a run with these settings that nobody touches, and its result; each is made once."""
    made: dict[str, tuple[RunSettings, dict[str, Any]]] = {}

    def run(make: MakeSettings, data: TrainingData, **values: Any) -> tuple[RunSettings, dict[str, Any]]:
        key = json.dumps(values, sort_keys=True)
        if key not in made:
            settings = make(**values, output_dir=str(tmp_path_factory.mktemp("uncut") / "run"))
            made[key] = settings, run_training(settings, data)
        return made[key]

    return run


@pytest.mark.parametrize(
    ("step", "changes"), [(1, {}), (4, {}), (5, {}), (7, {"gradient_accumulation_steps": 2}), (9, {"lora_r": 2})]
)
def test_cut_and_resumed_equals_uninterrupted_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    uncut: Any,
    cheap_runs: None,
    step: int,
    changes: dict[str, Any],
) -> None:
    schedule = {
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "logging_steps": 2,
    }
    values = {**schedule, "seqaug__p_apply": 0.5, "seqaug__p_feat": 0.2, "ffw_lora_dropout": 0.1, **changes}
    values |= {"modality_dropout": 0.3, "frame_dropout": 0.3, "cmixup_alpha": 2.0}
    whole, expected = uncut(toy_settings, toy_data, **values)
    cut = toy_settings(**values, output_dir=str(tmp_path / "cut"))
    run_until(monkeypatch, cut, toy_data, step)
    assert not (tmp_path / "cut" / "result.json").exists()
    resumed = run_training(cut, toy_data)
    assert lines_of(cut) == lines_of(whole)
    assert resumed["metrics"] == expected["metrics"]
    for name, tensor in weights_of(whole).items():
        assert torch.equal(weights_of(cut)[name], tensor), name


def test_resuming_after_the_last_step_trains_no_further(
    monkeypatch: pytest.MonkeyPatch, toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    for name, values in {
        "early": {"num_train_epochs": 6, "early_stopping_patience": 1, "learning_rate": 0.0},
        "steps": {"max_steps": 3},
    }.items():
        whole = toy_settings(**values, output_dir=str(tmp_path / f"{name}-whole"))
        cut = toy_settings(**values, output_dir=str(tmp_path / f"{name}-cut"))
        expected = run_training(whole, toy_data)
        with monkeypatch.context() as patch:
            patch.setattr(run_module._Run, "conclude", lambda *_: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                run_training(cut, toy_data)
        resumed = run_training(cut, toy_data)
        assert resumed["train"]["steps"] == expected["train"]["steps"]
        assert resumed["metrics"] == expected["metrics"]
        assert lines_of(cut) == lines_of(whole)


def test_a_kill_while_saving_costs_the_new_checkpoint_only(
    monkeypatch: pytest.MonkeyPatch,
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "save_total_limit": 1}
    expected = run_training(toy_settings(**values, output_dir=str(tmp_path / "whole")), toy_data)
    cut = toy_settings(**values, output_dir=str(tmp_path / "cut"))
    commit = checkpoints.commit

    def kill_at_four(directory: Path, facts: dict[str, Any]) -> None:
        if facts["step"] == 4:
            raise Killed
        commit(directory, facts)

    with monkeypatch.context() as patch:
        patch.setattr("deepmlf_llm.training.checkpoints.commit", kill_at_four)
        with pytest.raises(Killed):
            run_training(cut, toy_data)
    assert run_training(cut, toy_data)["metrics"] == expected["metrics"]
    said = capsys.readouterr().out
    assert "skipped checkpoint-4: it was cut while being written" in said
    assert "going on from checkpoint-2" in said


def test_the_test_split_is_read_once_at_the_end_by_each_seed(
    monkeypatch: pytest.MonkeyPatch, toy_settings: MakeSettings, toy_data: TrainingData
) -> None:
    reads: list[int] = []

    class Watched(Utterances):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if counting:
                reads.append(index)
            return super().__getitem__(index)

    counting = False
    toy_data.test = Watched(6, seed=9)
    conclude, ends = run_module._Run.conclude, []

    def after_training(self: Any, *args: Any) -> Any:
        assert not reads
        concluded = conclude(self, *args)
        ends.append(sorted(reads))
        return concluded

    train = run_module._Run.train

    def from_training_on(self: Any, *args: Any) -> Any:
        nonlocal counting
        counting = True
        reads.clear()
        return train(self, *args)

    select = selection.select

    def until_the_adapter_is_chosen(*args: Any) -> Any:
        found = select(*args)
        assert not reads
        return found

    monkeypatch.setattr(run_module._Run, "conclude", after_training)
    monkeypatch.setattr(run_module._Run, "train", from_training_on)
    monkeypatch.setattr(selection, "select", until_the_adapter_is_chosen)
    run_seeds(toy_settings(ema_decay=0.5, average_last=2, ffw_scope="fusion", text_cache="memory"), [1, 2], toy_data)
    assert ends == [list(range(6))] * 2


def test_a_dry_run_says_what_it_would_be_and_writes_nothing(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = run_training(toy_settings(text_cache="memory", ffw_scope="fusion"), toy_data, dry_run=True)
    assert plan["status"] == "planned"
    assert plan["train"]["steps"] == 10
    assert plan["train"]["text_cache_bytes"] > 0
    said = capsys.readouterr().out
    assert "10 steps, 5 an epoch" in said
    assert re.search(r"text cache \(memory\): \d+ MB for (\d+) texts, \1 of them to be read", said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scope", ["fusion", "joint"])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_text_cache_changes_nothing_but_time(
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    uncut: Any,
    capsys: pytest.CaptureFixture[str],
    scope: str,
    cache: str,
) -> None:
    _, plain = uncut(toy_settings, toy_data, ffw_scope=scope)
    capsys.readouterr()
    cached = run_training(toy_settings(ffw_scope=scope, text_cache=cache), toy_data)
    assert re.search(rf"text cache \({cache}\): \d+ MB for (\d+) texts, \1 of them", capsys.readouterr().out)
    # Ten steps of training make 1e-4 of rounding: texts are read in other batches.
    assert cached["metrics"]["test"]["mae"] == pytest.approx(plain["metrics"]["test"]["mae"], abs=rounding(3e-4))


@pytest.mark.parametrize("modalities", [["audio"], ["vision"], ["audio", "vision"]])
def test_any_set_of_modalities_trains(
    toy_settings: MakeSettings, toy_data: TrainingData, modalities: list[str]
) -> None:
    result = run_training(toy_settings(modalities=modalities, max_steps=2), toy_data)
    assert result["train"]["steps"] == 2


def test_text_alone_trains_and_is_evaluated_predicted_and_merged(
    toy_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``modalities: none``, from a run to predictions; features that the data have are not read, and that is said."""
    from deepmlf_llm import SentimentPredictor
    from deepmlf_llm.commands import merge, predict
    from deepmlf_llm.training.evaluation import evaluate_adapter

    data, adapter = str(embedded_dataset(tmp_path / "cache", sizes=(24, 8, 8))), str(tmp_path / "run" / "adapter")
    result = run_training(toy_settings(data=data, modalities="none", max_steps=3, text_cache="memory"))
    assert result["config"]["modalities"] == ["none"]
    assert result["heads"]["test"].keys() == {"fusion", "text"}
    assert not [name for line in lines_of(toy_settings()) for name in line if "av" in name]
    assert not [name for name in weights_of(toy_settings()) if "av" in name or "cross_attention" in name]
    found = evaluate_adapter(adapter, data, "test")
    assert found["metrics"] == pytest.approx(result["metrics"]["test"], abs=rounding(1e-5), nan_ok=True)
    assert found["notes"] == ["the model reads text alone: no features are read"]

    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "It reads text alone: no audio, no vision." in card
    assert 'predictor.predict(text=["..."])\n' in card
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": 1, "text": "so it went", "audio": [[0.5, 1.0]]}) + "\n")
    words = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--adapter"]
    assert predict.main([*words, adapter]) == 0
    assert "note: not read, because they are no id, text, label: 'audio'" in capsys.readouterr().out
    (line,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert line["av_polarity"] is None

    merge.main(["--adapter", adapter, "--output", str(tmp_path / "merged")])
    merged = SentimentPredictor.from_pretrained(tmp_path / "merged")
    assert merged.predict(["so it went"])[0].polarity == pytest.approx(line["polarity"], abs=1e-5)
    with pytest.raises(DataError, match="'audio': this model reads text alone"):
        merged.predict(["so it went"], audio=[[[1.0]]])


def test_a_run_of_another_design_begins_behind_gates_that_are_shut(
    toy_settings: MakeSettings, toy_data: TrainingData
) -> None:
    """The AV encoder has no loss of its own here, and gets a gradient once a gate has opened."""
    design = {"gca_queries": "both", "ffw_scope": "none", "gate": "tanh", "gate_per": "channel", "head_base": "text"}
    settings = toy_settings(**design, objective__lambda_av=0, objective__lambda_fusion=0, max_steps=8)
    gates = run_training(settings, toy_data)["train"]["gates"]
    assert gates.keys() == {"layer 1", "layer 3"}
    assert all(values.keys() == {"gca"} and values["gca"] != 0 for values in gates.values())


def test_a_third_modality_needs_no_new_code(toy_settings: MakeSettings, toy_data: TrainingData) -> None:
    for split in toy_data.splits().values():
        for item in split.items:  # type: ignore[attr-defined]
            item["heart_rate"] = item["audio"][:, :2]
    toy_data.modalities = {**toy_data.modalities, "heart_rate": {"dim": 2}}
    result = run_training(toy_settings(max_steps=2), toy_data)
    assert result["train"]["steps"] == 2


def test_data_without_any_modality_present_train(toy_settings: MakeSettings, toy_data: TrainingData) -> None:
    toy_data.train = Utterances(16, seed=0, absent=lambda i: tuple(DIMS))
    assert run_training(toy_settings(max_steps=2), toy_data)["train"]["steps"] == 2


def test_prepared_data_and_a_share_of_them(toy_settings: MakeSettings, tmp_path: Path) -> None:
    data = str(embedded_dataset(tmp_path / "cache", sizes=(24, 8, 8)))
    result = run_training(toy_settings(data=data, data_fraction=0.5, max_steps=2))
    assert result["data"]["used"]["train"]["utterances"] == 12
    assert result["data"]["splits"]["train"]["rows"] == 24
    assert len(result["data"]["splits"]["train"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fusion_layers": [1, 99]}, DeepMLFError, "99"),
        ({"fusion_layers": "last:9"}, DeepMLFError, "this LM has 4 layers"),
        ({"base_model": "no/such-model"}, BaseModelError, "no/such-model"),
        ({"data": "no/such/data"}, DataError, "not there"),
        ({"modalities": ["smell"]}, DataError, "the data have no 'smell'"),
        ({"gate": "relu"}, ConfigError, "gate='relu'"),
        ({"deepspeed": "no.json"}, ConfigError, "cannot be read"),
        ({"lr_scheduler_type": "zigzag"}, ConfigError, "zigzag"),
        ({"batch_size": 8, "per_device_train_batch_size": 3}, ConfigError, "give one of them only"),
        ({"text_cache": "memory", "lora_r": 2}, ConfigError, "text_cache"),
        ({"num_layers": 40}, BaseModelError, "num_layers=40"),
        ({"metric_for_best_model": "accuracy"}, ConfigError, "metric_for_best_model='accuracy'"),
    ],
)
def test_bad_input_leaves_nothing(
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[DeepMLFError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        run_training(toy_settings(**changes), None if "data" in changes else toy_data)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_no_causal_decoder_is_refused(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    from deepmlf_llm.backbones import load_tokenizer

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=320, **sizes)).save_pretrained(tmp_path / "bert")
    load_tokenizer("tiny-llama").save_pretrained(tmp_path / "bert")
    with pytest.raises(BaseModelError):
        run_training(toy_settings(base_model=str(tmp_path / "bert")), toy_data)
    assert not (tmp_path / "run").exists()


def test_another_run_in_the_directory_is_refused(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path
) -> None:
    run_training(toy_settings(max_steps=1), toy_data)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with pytest.raises(RunError, match=r"holds another run \(gate='sigmoid' there, 'tanh' here\)"):
        run_training(toy_settings(max_steps=1, gate="tanh"), toy_data)
    toy_data.fingerprint = "other"
    with pytest.raises(RunError, match="the data: 'toy' there, 'other' here"):
        run_training(toy_settings(max_steps=1), toy_data)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion_layers": "even:7"}, r"'even:4' would fit"),
        ({"text__max_tokens": 254}, r"make 257 positions; this LM has 256: text.max_tokens=253 would fit"),
        ({"text__max_tokens": 250, "text__template": "{text} so:"}, r"4 tokens of the template .* text.max_tokens=249"),
        ({"num_layers": 9}, r"num_layers=9: this decoder has 4 layers"),
        ({"gca_heads": 7}, r"gca_heads, gca_head_width"),
    ],
)  # fmt: skip
def test_what_a_base_does_not_take_is_refused_before_its_weights_load(
    toy_data, toy_settings, monkeypatch, changes, message
):
    import deepmlf_llm.backbones as room

    monkeypatch.setattr(room, "load_base_model", lambda *a, **k: pytest.fail("loaded"))
    settings = toy_settings(**changes)
    with pytest.raises(DeepMLFError, match=message):
        run_training(settings, toy_data)
    assert not Path(settings.output_dir).exists()


@pytest.mark.parametrize(
    ("asked", "begun", "noted", "expected"),
    [
        ("auto", False, None, "bfloat16"),
        ("auto", True, "float32", "float32"),
        ("auto", True, "bfloat16", "bfloat16"),
        ("auto", True, None, "float32"),  # by an earlier version, on a CPU
        ("float32", True, "float32", "float32"),
    ],
)
def test_a_run_goes_on_in_the_dtype_that_it_was_begun_in(
    monkeypatch: pytest.MonkeyPatch, asked: str, begun: bool, noted: str | None, expected: str
) -> None:
    class Directory:
        def holds_this_run(self) -> bool:
            return begun

        def fact(self, name: str) -> str | None:
            return noted if name == "dtype" else None

    monkeypatch.setenv("DEEPMLF_DTYPE", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    directory: Any = Directory()
    assert base_dtype(RunSettings.from_dict({"dtype": asked}), directory) == expected


def test_the_dtype_of_a_base_is_said_and_noted(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("DEEPMLF_DTYPE", "bfloat16")
    result = run_training(toy_settings(max_steps=1), toy_data)
    assert result["base_model"]["stored"] == "bfloat16"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dtype"] == "bfloat16"
    if not torch.cuda.is_available():
        assert "base model in bfloat16, which this CPU computes" in capsys.readouterr().out
