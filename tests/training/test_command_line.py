from __future__ import annotations

from pathlib import Path

import pytest

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training.command_line import help_text, parse_settings, read_config
from deepmlf_llm.training.keys import all_keys
from deepmlf_llm.training.settings import RunSettings


def parse(*argv: str) -> RunSettings:
    return parse_settings(argv)


def test_values_get_the_type_of_their_key() -> None:
    settings = parse(
        *("--learning_rate", "1e-3", "--seed=7", "--fusion_layers", "[1, 3]", "--objective.gamma", "0.5", "--bf16"),
        *(
            "--modalities",
            "audio,vision",
            "--target_modules",
            "all-linear",
            "--lora_r",
            "2",
            "--text.template",
            "{text} Feels:",
        ),
        *("--eval_strategy", "steps", "--text_cache_dtype", "null", "--lr_scheduler_kwargs", "{num_cycles: 2}"),
    )
    assert settings.trainer["learning_rate"] == 1e-3
    assert settings.trainer["seed"] == 7
    assert settings.trainer["bf16"] is True
    assert settings.trainer["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert settings.method["fusion_layers"] == [1, 3]
    assert settings.method["objective"] == {"gamma": 0.5}
    assert settings.method["text"] == {"template": "{text} Feels:"}
    assert settings.method["target_modules"] == "all-linear"
    assert settings.modalities == ["audio", "vision"]
    assert settings.text_cache_dtype is None


def test_no_modality_is_a_choice_and_said_in_one_way(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    found = [parse("--modalities", "none").modalities]
    for text in ("modalities: none\n", "modalities: [none]\n"):
        file.write_text(text)
        found.append(parse("--config", str(file)).modalities)
    assert found == [["none"]] * 3
    assert parse("--modalities", "null").modalities is None
    for words in ("none,audio", "[]"):
        with pytest.raises(ConfigError, match="a list of modalities, none of them twice, or the word none alone"):
            parse("--modalities", words)


def test_command_line_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("seed: 1\nlearning_rate: 1e-4\nobjective:\n  gamma: 1.0\n  lambda_av: 0.1\neval_strategy: no\n")
    settings = parse("--config", str(file), "--objective.gamma", "0", "--seed", "2")
    values = settings.trainer_values()
    assert (values["seed"], values["learning_rate"], values["adam_beta2"]) == (2, 1e-4, 0.95)
    assert settings.method["objective"] == {"gamma": 0.0, "lambda_av": 0.1}
    assert values["eval_strategy"] == "no"  # YAML reads the word as false


def test_default_config_counts_only_without_data_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "default.yaml"
    file.write_text("num_fusion_tokens: 5\n")
    assert parse_settings([], file).method == {"num_fusion_tokens": 5}
    assert parse_settings(["--data", "mine"], file).method == {}


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("--fusion_layer", "x", "--objective.gama", "1", "--fp16", "--batch_size", "many", "--text_cache", "disc")
    message = str(caught.value)
    assert "unknown option --fusion_layer (did you mean 'fusion_layers'?)" in message
    assert "unknown option --objective.gama (did you mean 'objective.gamma'?)" in message
    assert "--fp16 is not a setting here: use bf16" in message
    assert "--batch_size='many': expected an integer" in message
    assert "text_cache='disc': expected one of 'none', 'memory', 'disk'" in message


def test_unknown_keys_of_a_file_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("objective:\n  lamda_av: 1\n")
    with pytest.raises(
        ConfigError, match=r"x\.yaml: unknown key 'objective.lamda_av' \(did you mean 'objective.lambda_av'"
    ):
        parse("--config", str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n- b\n", "expected a mapping"), ("a: [1\n", "is not YAML"), (None, "cannot be read")],
)
def test_files_that_are_no_settings(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config(file)


def test_stray_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="'seed' belongs to no option"):
        parse("seed", "7")


def test_what_launchers_insert_is_accepted() -> None:
    assert parse("--local_rank=1", "--ds", "x.json").deepspeed == "x.json"
    assert parse("--local-rank", "0", "--deepspeed", "y.json").deepspeed == "y.json"


def test_the_last_of_two_counts() -> None:
    assert parse("--seed", "1", "--seed", "2").trainer["seed"] == 2


def test_help_names_every_key_with_type_and_default() -> None:
    text = help_text("usage")
    assert "--seeds" in text
    assert "--seeds" not in help_text("usage", several_seeds=False)
    assert all(name in text for name in all_keys())
    assert "utterances a step, over all processes and accumulated batches [an integer; default: 32]" in " ".join(
        text.split()
    )
