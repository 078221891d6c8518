"""Every shipped YAML is read, completed by data of its kind and dry-run: on a toy as deep as the base it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deepmlf_llm import shipped
from deepmlf_llm.ablation import AblationPlan
from deepmlf_llm.backbones.toys import toy_model, toy_tokenizer
from deepmlf_llm.commands import configs
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.study.baseline_cells import baseline_settings
from deepmlf_llm.study.grid import Grid
from deepmlf_llm.training.av_run import pretrain_av_encoder
from deepmlf_llm.training.command_line import parse_settings, read_config
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.keys import all_keys
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings, flatten

NAMES = [name for name in shipped.names(shipped.CONFIGS) if not name.startswith(("scale/", "ablations/"))]
LAID_OVER = "as_published/"
STAGE_1 = [name for name in NAMES if "av_encoder" in name or "stage1" in name]  # of the AV encoder alone
BASES = {  # hub id -> toy of its kind, layers as its config.json has them
    "gpt2": ("tiny-gpt2", 12),
    "gpt2-large": ("tiny-gpt2", 36),
    "uer/gpt2-chinese-cluecorpussmall": ("tiny-gpt2", 12),
    "HuggingFaceTB/SmolLM2-1.7B": ("tiny-llama", 24),
    "smollm2-135m": ("tiny-llama", 30),
    "auto": ("tiny-llama", 30),
    "meta-llama/Llama-3.2-1B": ("tiny-llama", 16),
    "meta-llama/Llama-3.2-3B": ("tiny-llama", 28),
    "meta-llama/Llama-3.1-8B": ("tiny-llama", 32),
    "mistralai/Mistral-7B-v0.3": ("tiny-mistral", 32),
    "Qwen/Qwen2.5-7B": ("tiny-llama", 28),
}
PAPER: dict[str, dict[str, Any]] = {  # the paper's best settings, as its table has them
    "mosi_smollm2_1.7b": {
        "fusion_layers": [11, 14, 17, 20, 23],
        "num_fusion_tokens": 8,
        "ffw_weights": "shared",
        "ffw_lora_r": 512,
        "ffw_lora_alpha": 8192,
        "ffw_lora_dropout": 0.05,
        "objective.lambda_fusion": 0.4,
        "objective.lambda_av": 0.8,
        "objective.lambda_text": 0.8,
        "objective.gamma": 0.0,
        "seqaug.p_apply": 0.0,
        "weight_decay": 1e-3,
        "early_stopping_patience": 30,
        "metric_for_best_model": "mae",
    },
    "mosei_gpt2_base": {
        "fusion_layers": [3, 5, 7, 8, 9, 10, 11],
        "num_fusion_tokens": 12,
        "objective.gamma": 1.1,
        "seqaug.p_feat": 0.2,
        "seqaug.p_apply": 0.3,
        "weight_decay": 5e-3,
    },
    "mosei_gpt2_large": {
        "fusion_layers": [7, 14, 21, 28, 35],
        "num_fusion_tokens": 12,
        "objective.gamma": 1.0,
        "seqaug.p_feat": 0.3,
        "seqaug.p_apply": 0.25,
        "weight_decay": 0.1,
    },
    "sims_gpt2_chinese": {
        "fusion_layers": [5, 6, 7, 8, 9, 10, 11],
        "num_fusion_tokens": 20,
        "objective.gamma": 1.0,
        "seqaug.p_feat": 0.3,
        "seqaug.p_apply": 0.25,
        "weight_decay": 0.1,
        "av_encoder.max_frames": 55,
        "text.max_tokens": 39,
    },
}
GPT2 = {
    "ffw_weights": "copy",
    "objective.lambda_fusion": 1.0,
    "objective.lambda_av": 1.0,
    "objective.lambda_text": 1.0,
    "early_stopping_patience": 10,
    "metric_for_best_model": "loss",
}
COMMON = {
    "batch_size": 256,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "warmup_epochs": 1.0,
    "ffw_scope": "joint",
    "gate": "sigmoid",
}


def told(settings: RunSettings) -> dict[str, Any]:
    """All settings by their dotted names."""
    return flatten(settings.to_dict())


def config_words(name: str) -> list[str]:
    """``--config`` for one shipped file: those that are laid over others are laid over the paper's for MOSI."""
    below = "paper/av_encoder_mosi" if name in STAGE_1 else "mosi"
    return ["--config", f"{below},{name}" if name.startswith(LAID_OVER) else name]


@pytest.fixture(scope="module")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A directory with a narrow toy that is as deep as a hub's model."""
    place = tmp_path_factory.mktemp("bases")

    def make(hub: str) -> str:
        kind, layers = BASES[hub]
        directory = place / f"{kind}-{layers}"
        if not directory.exists():
            narrow = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": layers}
            sizes = {"n_embd": 32, "n_layer": layers} if kind == "tiny-gpt2" else narrow
            toy_model(kind, **sizes, max_position_embeddings=1024).save_pretrained(directory)
            toy_tokenizer().save_pretrained(directory)
        return str(directory)

    return make


def data_for(settings: RunSettings) -> TrainingData:
    kind = Path(settings.data).name
    items = [{"text": f"so {i}", "label": float(i % 2), "audio": [[0.0] * 4], "vision": [[1.0] * 3]} for i in range(4)]
    modalities = {"audio": {"dim": 4}, "vision": {"dim": 3}}
    return TrainingData(items, items, items, modalities, kind if kind in ("mosei", "sims") else "mosi")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STAGE_1])
def test_every_shipped_configuration_is_dry_run(
    name: str, base_directory: Callable[[str], str], tmp_path: Path
) -> None:
    given = parse_settings(config_words(name))
    words = ["--base_model", base_directory(given.base_model), "--output_dir", str(tmp_path / "run")]
    words += ["--text.max_tokens", str(4 * told(given)["text.max_tokens"])]  # the toys' tokens are bytes
    settings = parse_settings([*config_words(name), *words, "--report_to", "none"])
    planned = run_training(settings, data_for(settings), dry_run=True)
    assert planned["train"]["steps"] > 0
    assert planned["train"]["parameters"]["trainable"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", STAGE_1)
def test_every_shipped_configuration_of_stage_1_is_dry_run(name: str, tmp_path: Path) -> None:
    settings = parse_settings([*config_words(name), "--output_dir", str(tmp_path / "run"), "--report_to", "none"])
    planned = pretrain_av_encoder(settings, data_for(settings), dry_run=True)
    assert planned["train"]["parameters"]["trainable"] == planned["train"]["parameters"]["total"] > 0


@pytest.mark.parametrize(
    ("stage_1", "stage_2", "rate"),
    [
        ("paper/av_encoder_mosi", "paper/mosi_smollm2_1.7b", 1e-3),
        ("paper/av_encoder_mosei", "paper/mosei_gpt2_base", 5e-3),
        ("paper/av_encoder_mosei", "paper/mosei_gpt2_large", 5e-3),
        ("paper/av_encoder_sims", "paper/sims_gpt2_chinese", 5e-4),
        ("demo_av_encoder", "demo", 2e-3),
        ("mosi_av_encoder", "mosi_smollm2", 1e-3),
    ],
)
def test_an_encoder_of_stage_1_is_one_of_stage_2(stage_1: str, stage_2: str, rate: float) -> None:
    first, second = (told(parse_settings(["--config", name])) for name in (stage_1, stage_2))
    assert {k: v for k, v in first.items() if k.startswith("av_encoder.")} == {
        k: v for k, v in second.items() if k.startswith("av_encoder.")
    }
    assert (first["learning_rate"], first["weight_decay"], first["max_grad_norm"]) == (rate, 1e-3, 1.0)
    assert first["av_readout"] == ("last" if stage_1.startswith("paper/") else "mean")


@pytest.mark.parametrize("name", [name for name in shipped.names(shipped.CONFIGS) if name.startswith("ablations/")])
def test_every_variant_of_an_ablation_can_be_set(name: str) -> None:
    plan = AblationPlan.from_yaml(name)
    assert plan.reference in {variant.name for variant in plan.variants}
    variants = [variant for variant in plan.variants if not variant.baseline]
    runs = {str((variant.run_settings("data", Path("runs")).to_dict(), variant.data)) for variant in variants}
    assert len(runs) == len(variants)  # each changes something


@pytest.mark.parametrize("name", [name for name in shipped.names(shipped.CONFIGS) if name.startswith("ablations/")])
def test_every_kind_of_variant_of_an_ablation_is_dry_run(
    name: str, base_directory: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the toy as deep as its base: what a run would refuse, hours after the first, is refused here."""
    monkeypatch.setattr("deepmlf_llm.training.assemble.check_before_loading", lambda *_: None)  # loading checks again
    runs = [variant for variant in AblationPlan.from_yaml(name).variants if not variant.baseline]
    for variant in {frozenset(variant.changes): variant for variant in runs}.values():  # one of each kind
        base = base_directory(variant.settings["base_model"])
        given = {**variant.settings, "base_model": base, "text.max_tokens": 256, "data": "data/mosi"}
        if "av_encoder_from" in given:
            given["av_encoder_from"] = _an_encoder_for(variant.settings, tmp_path / "av")
        settings = RunSettings.from_dict({**given, "output_dir": str(tmp_path / "run")})
        assert run_training(settings, data_for(settings), dry_run=True)["train"]["steps"] > 0, variant.name


def _an_encoder_for(settings: Mapping[str, Any], place: Path) -> str:
    """An AV encoder that a variant could begin with."""
    own = {key: settings[key] for key in ("av_encoder.num_layers", "av_encoder.dropout", "av_encoder.input_dropout")}
    quick = {"max_steps": 1, "report_to": "none", "modalities": settings["modalities"]}
    given = RunSettings.from_dict({**own, **quick, "data": "data/mosi", "output_dir": str(place)})
    pretrain_av_encoder(given, data_for(given))
    return str(place)


@pytest.mark.parametrize("name", [name for name in shipped.names(shipped.CONFIGS) if name.startswith("scale/")])
def test_every_shipped_study_is_read(name: str) -> None:
    grid = Grid.from_yaml(shipped.locate(shipped.CONFIGS, name))
    for backbone, values, seed in grid.combinations():
        given = {**grid.fixed, **backbone.settings(), **values, "seed": seed}
        if "baseline" in given:
            assert baseline_settings(given).kind == given["baseline"]
        else:
            assert RunSettings.from_dict(given).resolve_batch(1)[0] >= 1


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings_are_those_of_its_table(name: str) -> None:
    found = told(parse_settings(["--config", f"paper/{name}"]))
    expected = {**COMMON, **(GPT2 if "gpt2" in name else {}), "text.max_tokens": 50, "av_encoder.max_frames": 50}
    expected |= PAPER[name]
    assert {key: found[key] for key in expected} == expected
    assert found["batch_size"] // found["gradient_accumulation_steps"] == 32
    share = 0.3 if name.startswith("mosi_") else 0.2  # of raw features, on every batch
    assert (found["seqaug.av_p_apply"], found["seqaug.av_p_feat"]) == (1.0, share)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("llm/")])
def test_large_bases_are_in_4_bits_with_lora(name: str) -> None:
    found = told(parse_settings(["--config", name]))
    assert (found["quantization"], found["ffw_weights"]) == ("nf4", "shared")
    assert found["lora_r"] > 0 < found["ffw_lora_r"]
    frozen = parse_settings(["--config", name, "--lora_r", "0", "--target_modules", "null", "--text_cache", "disk"])
    assert frozen.text_cache == "disk"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(LAID_OVER)])
def test_what_is_laid_over_changes_what_it_names_and_nothing_else(name: str) -> None:
    plain, over = told(parse_settings(["--config", "mosi_smollm2"])), flatten(read_config(name))
    changed = told(parse_settings(["--config", f"mosi_smollm2,{name}"]))
    assert {key for key in changed if changed[key] != plain.get(key)} <= set(over)
    assert {key: changed[key] for key in over} == over


def test_the_later_file_counts_and_the_command_line_over_all(tmp_path: Path) -> None:
    for file, text in (("a", "seed: 1\nobjective: {gamma: 1.0, lambda_av: 0.1}\n"), ("b", "objective: {gamma: 0.5}\n")):
        (tmp_path / f"{file}.yaml").write_text(text)
    both = f"{tmp_path}/a.yaml, {tmp_path}/b.yaml"
    settings = parse_settings(["--config", both, "--seed", "3"])
    assert settings.method["objective"] == {"gamma": 0.5, "lambda_av": 0.1}
    assert settings.trainer["seed"] == 3
    (tmp_path / "a,b.yaml").write_text("seed: 9\n")  # a file is a file, whatever it is called
    assert parse_settings(["--config", f"{tmp_path}/a,b.yaml"]).trainer["seed"] == 9
    with pytest.raises(ConfigError, match="--config nowhere: cannot be read"):
        parse_settings(["--config", f"{tmp_path}/a.yaml,nowhere"])


@pytest.mark.parametrize(("former", "now"), shipped.FORMER_NAMES.items())
def test_former_names_still_answer(former: str, now: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = shipped.names(shipped.CONFIGS)[now]
    for given in (former, f"{former}.yaml", f"recipes/configs/{former}.yaml"):
        assert shipped.locate(shipped.CONFIGS, given) == place
    configs.main([former])
    assert capsys.readouterr().out == place.read_text()


def test_the_page_on_the_paper_names_files_and_keys_that_are_there(repository: Path) -> None:
    page = (repository / "docs" / "reproducing.md").read_text(encoding="utf-8")
    known = set(shipped.names(shipped.CONFIGS))
    named = set(re.findall(r"\b((?:paper|llm|as_published|scale)/[\w.]*\w)(?![\w*$])", page))
    assert named <= known
    told_of = [name for name in known if name.startswith(("paper/", LAID_OVER)) and name not in STAGE_1]
    assert not [name for name in told_of if name.rpartition("/")[2] not in page]
    options = set(re.findall(r"--([a-z_]+(?:\.[a-z_]+)?)", page))
    others = {"source", "dataset", "out", "copy", "config", "ds", "key", "dry", "seeds", "output", "only", "grid"}
    assert options - others <= set(all_keys())
    plan = AblationPlan.from_yaml("ablations/mosi")
    for names in re.findall(r"--only ([^`]*)`", page):
        assert plan.named(shlex.split(names)), names
