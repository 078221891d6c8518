"""Mirrors ``deepmlf_llm/study/grid.py``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.study.grid import Backbone, Grid

MINIMAL = {"name": "small", "grid": [{"backbone": "tiny-llama"}], "seeds": [1]}


def test_rows_cross_their_values_with_every_seed():
    row = {
        "backbone": ["tiny-llama", {"base_model": "tiny-llama", "num_layers": 2}],
        "fusion_layers": ["even:1", [0, 2]],
    }
    grid = Grid.from_dict({**MINIMAL, "grid": row, "seeds": [3, 5]})
    found = list(grid.combinations())
    assert len(found) == 8
    assert found[0] == (Backbone("tiny-llama"), {"fusion_layers": "even:1"}, 3)
    assert found[-1] == (Backbone("tiny-llama", 2), {"fusion_layers": [0, 2]}, 5)


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True), min_size=1, max_size=3),
    st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True),
)
def test_no_combination_is_missing_or_there_twice(rows, seeds):
    """Rows may overlap: what they share runs once."""
    content = {
        **MINIMAL,
        "grid": [{"backbone": "tiny-llama", "num_fusion_tokens": row} for row in rows],
        "seeds": seeds,
    }
    found = [(values["num_fusion_tokens"], seed) for _, values, seed in Grid.from_dict(content).combinations()]
    assert len(found) == len(set(found)) == len({n for row in rows for n in row}) * len(seeds)


def test_a_base_model_brings_its_own_settings():
    backbone = {"base_model": "tiny-llama", "settings": {"text": {"template": "{text}:"}, "learning_rate": "1e-3"}}
    grid = Grid.from_dict({**MINIMAL, "grid": [{"backbone": [backbone, "tiny-gpt2"], "gate": "tanh"}]})
    own, other = (backbone for backbone, _, _ in grid.combinations())
    assert own.own == {"text.template": "{text}:", "learning_rate": 1e-3}
    assert other.own == {}
    backbone["settings"] |= {"seed": 3, "gait": 1}
    with pytest.raises(ConfigError) as caught:
        Grid.from_dict({**MINIMAL, "grid": [{"backbone": [backbone, {"base_model": "x", "settings": 3}]}]})
    for part in ("settings: seed cannot stand here", "settings: unknown key 'gait'", "settings=3: expected a mapping"):
        assert f"grid row 1: backbone: {part}" in str(caught.value)


def test_baselines_are_rows_and_what_draws_nothing_has_one_seed():
    row = {"backbone": ["tiny-llama", "tiny-gpt2"], "baseline": ["ridge", "lora_text"]}
    found = [
        (values["baseline"], seed)
        for _, values, seed in Grid.from_dict({**MINIMAL, "grid": row, "seeds": [4, 5]}).combinations()
    ]
    assert found == [("ridge", 4), ("lora_text", 4), ("lora_text", 5)] * 2
    with pytest.raises(ConfigError) as caught:
        Grid.from_dict({**MINIMAL, "grid": {**row, "baseline": "rigde", "gate": "tanh"}})
    assert "grid row 1: baseline='rigde': expected one of constant, ridge" in str(caught.value)
    assert "grid row 1: gate beside baseline, which takes backbone alone" in str(caught.value)


def test_everything_wrong_is_named_at_once():
    content = {
        "name": "two words",
        "seed": 3,
        "metric": "accuracy",
        "processes": 2,
        "seeds": [1, 1],
        "fixed": {"learing_rate": 1e-3, "output_dir": "x", "batch_size": "many", "objective": {"gama": 1}},
        "grid": [
            {"num_fusion_tokens": 4},
            {"backbone": {"base_model": "tiny-llama", "layers": 2}, "gates": ["tanh"], "num_layers": 3},
            {"backbone": [7], "fusion_layers": "first:2", "lora_r": []},
        ],
        "exclude": [{"name": "no where"}, {"name": "typo", "where": {"gait": "tanh"}}],
    }
    with pytest.raises(ConfigError) as caught:
        Grid.from_dict(content, "--grid g.yaml")
    message = str(caught.value)
    for part in (
        "--grid g.yaml: ",
        "unknown key 'seed' (did you mean 'seeds'?)",
        "name='two words'",
        "metric='accuracy': expected one of mae",
        "processes=2 needs fixed: {deepspeed:",
        "seeds=[1, 1]: a seed stands there twice",
        "fixed: unknown key 'learing_rate' (did you mean 'learning_rate'?)",
        "fixed: output_dir cannot stand here: every cell has its own",
        "fixed: batch_size='many': expected an integer",
        "fixed: unknown key 'objective.gama' (did you mean 'objective.gamma'?)",
        "grid row 1: expected a mapping with the key backbone",
        "grid row 2: backbone: unknown key 'layers' (did you mean",
        "grid row 2: unknown key 'gates'",
        "grid row 2: num_layers cannot stand here: name it under backbone",
        "grid row 3: backbone=7: expected a name",
        "grid row 3: fusion_layers='first:2': expected",
        "grid row 3: lora_r has no value",
        "exclude 1: expected the keys name (why) and where",
        "exclude 2: unknown key 'gait' (did you mean 'gate'?)",
    ):
        assert part in message, part


@pytest.mark.parametrize("content", [None, [], {"name": "a", "grid": []}, {"name": "a", "seeds": [1]}])
def test_an_empty_grid_is_refused(content):
    with pytest.raises(ConfigError, match=r"grid: (empty|expected)"):
        Grid.from_dict(content)


def test_a_setting_cannot_be_fixed_and_varied():
    content = {**MINIMAL, "fixed": {"gate": "tanh"}, "grid": [{"backbone": "tiny-llama", "gate": ["tanh", "none"]}]}
    with pytest.raises(ConfigError, match="grid row 1: gate stands under fixed too"):
        Grid.from_dict(content)


def test_files_that_are_no_grid(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        Grid.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("grid: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        Grid.from_yaml(tmp_path / "broken.yaml")


def test_exclusions_look_at_settings_defaults_included():
    where = {"base_model": "tiny-llama", "fusion_layers": ["even:6", [1, 2]]}
    (exclusion,) = Grid.from_dict({**MINIMAL, "exclude": [{"name": "deep", "where": where}]}).exclude
    assert exclusion.covers({"base_model": "tiny-llama", "fusion_layers": [1, 2], "num_fusion_tokens": 4})
    assert not exclusion.covers({"base_model": "tiny-llama", "fusion_layers": "even:2"})
    assert not exclusion.covers({"base_model": "tiny-llama"})  # the default is even:7
    (exclusion,) = Grid.from_dict({**MINIMAL, "exclude": [{"name": "gate", "where": {"gate": "sigmoid"}}]}).exclude
    assert exclusion.covers({})


@pytest.mark.parametrize(("name", "cells"), [("default", 15), ("mosi", 18), ("llm_search", 32), ("llm", 82)])
def test_shipped_grids_load(repository, name, cells):
    grid = Grid.from_yaml(repository / "recipes" / "configs" / "scale" / f"{name}.yaml")
    assert len(list(grid.combinations())) == cells
    assert grid.name == name


@pytest.mark.timeout(20)
def test_more_cells_than_anybody_runs_are_refused_before_they_are_built():
    row = {"backbone": "tiny-llama", "num_fusion_tokens": list(range(1, 1001)), "ffw_lora_r": list(range(1, 401))}
    with pytest.raises(ConfigError, match=r"800,000 cells; a study has at most 10,000: cross less"):
        Grid.from_dict({**MINIMAL, "grid": row, "seeds": [1, 2]})
    row = {"backbone": "tiny-llama"} | {f"objective.{n}": [0.1] * 1000 for n in ("gamma", "lambda_av", "lambda_text")}
    with pytest.raises(ConfigError, match=r"1,000,000,000 cells"):
        Grid.from_dict({**MINIMAL, "grid": [row]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2: the key 'name' stands there twice"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n" + "c: [*b" + ", *b" * 50_000 + "]\n", "aliases unfold"),
        ("[" * 50_000, "nested too deep"),
    ],
)
def test_a_grid_that_unfolds_or_repeats_is_refused(tmp_path, text, message):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Grid.from_yaml(tmp_path / "g.yaml")
