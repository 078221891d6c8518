"""Mirrors ``deepmlf_llm/study/plan.py`` and ``deepmlf_llm/backbones/shape.py``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.backbones.shape import base_model_shape
from deepmlf_llm.baselines.settings import BaselineSettings
from deepmlf_llm.commands.baseline import build_parser
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.errors import BaseModelError, ConfigError, DeepMLFError
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.study import plan as planning
from deepmlf_llm.study.baseline_cells import baseline_settings, baseline_words
from deepmlf_llm.study.grid import Grid
from deepmlf_llm.training.assemble import method_config
from deepmlf_llm.training.data import load_data
from deepmlf_llm.training.settings import RunSettings


@pytest.fixture(scope="module")
def data(isolated_cache) -> str:
    return str(embedded_dataset(sizes=(40, 10, 10)))


@pytest.fixture
def plan(data, tmp_path, monkeypatch):
    """A plan from a grid's content, with a code version that the test decides."""
    recipe = tmp_path / "train.py"
    recipe.write_text("")

    def make(code: str = "0123", **content):
        monkeypatch.setattr(planning, "code_version", lambda _: code)
        fixed = {"data": data, "max_steps": 5, **content.pop("fixed", {})}
        grid = {"name": "small", "seeds": [1, 2], "fixed": fixed, **content}
        return planning.make_plan(Grid.from_dict(grid), recipe)

    return make


TWO_CUTS = [{"base_model": "tiny-llama", "num_layers": layers} for layers in (2, 4)]


def test_counts_are_those_of_the_real_model(plan, data):
    row = {"backbone": TWO_CUTS[0], "fusion_layers": "even:2", "ffw_lora_r": [4, 8], "lora_r": 2}
    for cell in plan(grid=row, seeds=[1]).cells:
        settings = RunSettings.from_dict(cell.settings)
        base = load_base_model("tiny-llama", num_layers=2)
        model = DeepMLFModel(base, method_config(settings, load_data(settings)))
        parameters = list(model.parameters())
        assert cell.total == sum(p.numel() for p in parameters)
        assert cell.trainable == sum(p.numel() for p in parameters if p.requires_grad)
        assert cell.steps == 5
        assert cell.step_flops > 0


def test_text_alone_is_a_row_of_a_study(plan):
    grid = {"backbone": TWO_CUTS[0], "fusion_layers": "even:2", "modalities": ["none", "audio", ["audio", "vision"]]}
    alone, one, both = plan(grid=grid, seeds=[1]).cells
    assert [cell.values["modalities"] for cell in (alone, one, both)] == [["none"], ["audio"], ["audio", "vision"]]
    assert [cell.name.rpartition("-")[0].removeprefix("tiny-llama-2l-even-2-n8") for cell in (alone, one)] == [
        "-text-s1",
        "-s1",
    ]
    assert alone.trainable < one.trainable < both.trainable
    assert alone.step_flops < one.step_flops < both.step_flops


def test_cells_say_what_the_report_sorts_by(plan):
    grid = [
        {"backbone": TWO_CUTS, "fusion_layers": "even:2"},
        {"backbone": "tiny-llama", "fusion_layers": [[1, 3]], "num_fusion_tokens": 2},
    ]
    cells = plan(grid=grid, seeds=[1]).cells
    found = [tuple(cell.values[name] for name in ("base", "layers", "blocks", "placement")) for cell in cells]
    assert found == [("tiny-llama", 2, 2, "even"), ("tiny-llama", 4, 2, "even"), ("tiny-llama", 4, 2, "listed")]
    assert cells[2].name.startswith("tiny-llama-4l-at1.3-n2-s1-")
    assert len({cell.name for cell in cells}) == 3


def test_what_a_base_model_brings_is_its_own_in_every_row(plan):
    """So that base models differ in nothing else, and rows that name the setting can be compared with those that do
    not."""
    own = {**TWO_CUTS[1], "settings": {"ffw_lora_r": 4, "learning_rate": 0.01}}
    rows = [
        {"backbone": own, "fusion_layers": "even:1"},
        {
            "backbone": own,
            "fusion_layers": "even:1",
            "ffw_lora_r": 16,
            "num_fusion_tokens": 2,
            "objective": {"gamma": 0.5},
            "adam_beta2": 0.9,
        },
    ]
    level, grown = plan(grid=rows, seeds=[1]).cells
    assert (level.settings["ffw_lora_r"], level.values["ffw_lora_r"]) == (4, "own")
    assert (grown.settings["ffw_lora_r"], grown.values["ffw_lora_r"]) == (16, 16)
    assert level.settings["learning_rate"] == grown.settings["learning_rate"] == 0.01
    assert (level.values["num_fusion_tokens"], grown.values["num_fusion_tokens"]) == (8, 2)
    assert (level.values["objective.gamma"], grown.values["objective.gamma"]) == (0.0, 0.5)
    assert grown.values["adam_beta2"] == 0.9 != level.values["adam_beta2"]
    assert level.trainable < grown.trainable
    (plain,) = plan(grid=[{"backbone": TWO_CUTS[1], "fusion_layers": "even:1"}], seeds=[1]).cells
    assert plain.fingerprint != level.fingerprint


def test_baselines_are_sized_and_read_their_own_settings(plan):
    backbone = {**TWO_CUTS[0], "settings": {"text.template": "{text}:", "text.max_tokens": 9, "learning_rate": 0.5}}
    fixed = {"text_cache": "disk", "ffw_scope": "fusion"}
    rows = [
        {"backbone": backbone, "fusion_layers": "even:1"},
        {"backbone": backbone, "baseline": ["ridge", "lora_text"]},
    ]
    run, ridge, lora = plan(grid=rows, seeds=[1], fixed=fixed).cells
    assert [cell.values.get("baseline") for cell in (run, ridge, lora)] == [None, "ridge", "lora_text"]
    assert ridge.name.startswith("tiny-llama-2l-ridge-s1-")
    assert set(ridge.settings) == {
        "data",
        "base_model",
        "num_layers",
        "seed",
        "baseline",
        "text.template",
        "text.max_tokens",
    }
    base = load_base_model("tiny-llama", num_layers=2)
    linear = [m for m in base.model.modules() if isinstance(m, torch.nn.Linear)]
    assert lora.total - lora.trainable == ridge.total == sum(p.numel() for p in base.parameters())
    width = base.config.hidden_size
    assert lora.trainable == sum(8 * (m.in_features + m.out_features) for m in linear) + width + 1
    words = baseline_words(lora.settings, Path("out"))
    options = vars(build_parser().parse_args(words))
    options.pop("verbose", None)
    assert BaselineSettings(**options) == dataclasses.replace(baseline_settings(lora.settings), output_dir="out")
    assert (options["template"], options["max_tokens"], options["kind"]) == ("{text}:", 9, "lora_text")


def test_baselines_learn_from_what_the_cells_beside_them_learn_from(plan):
    fixed = {"data_fraction": 0.25, "modalities": ["audio"]}
    row = {"backbone": TWO_CUTS[0], "baseline": ["lora_text", "bam"]}
    lora, bam = plan(grid=[row], seeds=[1], fixed=fixed).cells
    (whole, _) = plan(grid=[row], seeds=[1], fixed={}).cells
    assert (lora.geometry["utterances"], whole.geometry["utterances"]) == (10, 32)  # a quarter of 40; a whole batch
    assert lora.steps == whole.steps / 2
    assert baseline_settings(bam.settings).modalities == ["audio"]
    assert baseline_settings(lora.settings).modalities is None
    options = vars(build_parser().parse_args(baseline_words(bam.settings, Path("out"))))
    assert (options["data_fraction"], options["modalities"]) == (0.25, ["audio"])


def test_a_baseline_that_has_nothing_to_hear_is_refused(plan):
    row = {"backbone": TWO_CUTS[0], "baseline": "bam"}
    with pytest.raises(ConfigError, match="baseline=bam needs a modality, and there is none"):
        plan(grid=[row], seeds=[1], fixed={"modalities": "none"})
    with pytest.raises(DeepMLFError, match="the data have no 'smell'"):
        plan(grid=[row], seeds=[1], fixed={"modalities": ["smell"]})


def test_a_new_row_leaves_the_others_what_they_are(plan):
    rows = [{"backbone": "tiny-llama", "fusion_layers": "even:2"}]
    before = plan(grid=rows).cells
    after = plan(grid=[{"backbone": "tiny-llama", "fusion_layers": "even:1", "gate": "tanh"}, *rows]).cells
    assert len(after) == 4
    assert [cell.fingerprint for cell in before] == [cell.fingerprint for cell in after[2:]]
    assert [cell.name for cell in before] == [cell.name for cell in after[2:]]


def test_fingerprints_change_with_settings_and_code(plan):
    row = {"backbone": "tiny-llama", "fusion_layers": "even:2"}
    base = {cell.fingerprint for cell in plan(grid=row).cells}
    assert len(base) == 2
    assert base.isdisjoint(cell.fingerprint for cell in plan("other code", grid=row).cells)
    assert base.isdisjoint(cell.fingerprint for cell in plan(grid=row, fixed={"max_steps": 6}).cells)
    assert base == {cell.fingerprint for cell in plan(grid=row).cells}


def test_texts_are_shared_by_what_reads_them_alike(plan):
    fixed = {"ffw_scope": "fusion", "text_cache": "disk"}
    row = {"backbone": TWO_CUTS, "fusion_layers": ["even:1", "even:2"], "num_fusion_tokens": [2, 4]}
    assert len({cell.text_key for cell in plan(grid=row, fixed=fixed).cells}) == 2  # one a cut
    joint = plan(grid={**row, "backbone": TWO_CUTS[1]}, fixed={"text_cache": "disk"}).cells
    assert len({cell.text_key for cell in joint}) == 2  # one a first MM Block


def test_exclusions_are_counted(plan):
    row = {"backbone": TWO_CUTS, "fusion_layers": ["even:2", "even:4"]}
    where = {"num_layers": 2, "fusion_layers": "even:4"}
    found = plan(grid=row, exclude=[{"name": "too deep", "where": where}, {"name": "none", "where": {"gate": "tanh"}}])
    assert len(found.cells) == 6
    assert found.excluded == {"too deep": 2, "none": 0}
    with pytest.raises(ConfigError, match="the grid is empty: every cell is excluded"):
        plan(grid=row, exclude=[{"name": "all", "where": {"base_model": "tiny-llama"}}])


def test_everything_wrong_is_named_once(plan):
    row = {"backbone": [*TWO_CUTS, {"base_model": "tiny-llama", "num_layers": 9}, "./no/such/model"]}
    row |= {"fusion_layers": ["even:4", "even:2"], "dtype": ["float32", "bfloat16"]}
    with pytest.raises(ConfigError) as caught:
        plan(grid=row)
    message = str(caught.value)
    for part in ("study 'small': ", "fusion_layers='even:4'", "num_layers=9", "./no/such/model"):
        assert message.count(part) >= 1, part
    assert message.count("num_layers=9: this decoder") == 1
    with pytest.raises(ConfigError, match=r"^[^=]*gate='relu': expected one of 'sigmoid', 'tanh', 'none'$"):
        plan(grid={**row, "gate": ["sigmoid", "relu"]})


@pytest.mark.parametrize(
    ("fixed", "part"),
    [
        ({"data": "no/such/data"}, "data=no/such/data: not there"),
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"attn_implementation": "fast"}, "attn_implementation='fast'"),
        ({"deepspeed": "none.json"}, "--ds none.json: cannot be read"),
        ({"text_cache": "disk", "lora_r": 4}, "text_cache='memory' with LoRA"),
        ({"metric_for_best_model": "accuracy"}, "metric_for_best_model='accuracy'"),
    ],
)
def test_what_would_fail_later_fails_now(plan, fixed, part):
    with pytest.raises(ConfigError, match=part.replace("(", r"\(")):
        plan(grid={"backbone": "tiny-llama", "fusion_layers": "even:2"}, fixed=fixed)


def test_a_stand_in_is_used_and_named(plan):
    there = {"base_model": "tiny-llama", "num_layers": 3, "otherwise": "tiny-gpt2"}
    missing = {"base_model": "./not/here", "num_layers": 6, "otherwise": {"base_model": "tiny-llama", "num_layers": 2}}
    found = plan(grid={"backbone": [there, missing], "fusion_layers": "even:1"}, seeds=[1])
    assert [(cell.values["base"], cell.values["layers"]) for cell in found.cells] == [
        ("tiny-llama", 3),
        ("tiny-llama", 2),
    ]
    assert found.notes == [
        "tiny-llama, 2 layers (random weights) stands in for ./not/here, 6 layers, which is not there."
    ]


def test_shapes_load_nothing():
    lm = base_model_shape("tiny-gpt2", num_layers=2)
    assert lm.config.num_hidden_layers == 2
    assert {p.device.type for p in lm.parameters()} == {"meta"}
    assert not any(p.requires_grad for p in lm.parameters())
    real = load_base_model("tiny-gpt2", num_layers=2)
    assert sum(p.numel() for p in lm.parameters()) == sum(p.numel() for p in real.parameters())
    with pytest.raises(BaseModelError, match=r"base_model='\./none': not there"):
        base_model_shape("./none")
    with pytest.raises(BaseModelError, match="num_layers=5"):
        base_model_shape("tiny-gpt2", num_layers=5)
