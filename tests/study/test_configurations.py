"""Mirrors ``deepmlf_llm/study/configurations.py``."""

from __future__ import annotations

from deepmlf_llm.study.configurations import Configuration, axis_name, gather, named, varied
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.results import read_all


def test_seeds_of_one_configuration_come_together(finished_study):
    directory = StudyDirectory(finished_study(failed=1))
    found = gather(read_all(directory, directory.planned()))
    assert len(found) == 12
    assert [sorted(c.records) for c in found] == [[2]] + [[1, 2]] * 11  # the failed one is not among them
    assert varied(found) == ["layers", "blocks", "num_fusion_tokens"]
    c = found[1]
    assert c.by_seed("mae").keys() == {1, 2}
    assert c.by_seed("f1_non0") == {}  # undefined
    assert len(c.head("text", "mae")) == 2
    assert c.head("none", "mae") == []
    assert c.train("parameters", "trainable") == [100_000 + 1_000_000 + 576 * 8] * 2
    assert c.train("missing", "deeper") == []
    assert c.rest("layers", varied(found)) == '{"blocks": 2, "num_fusion_tokens": 8}'


def test_listed_layers_show_only_where_their_number_does_not_tell_them():
    def listed(*layers: int) -> Configuration:
        return Configuration({"blocks": len(layers), "placement": "listed", "fusion_layers": list(layers)})

    assert varied([listed(29), listed(11, 20, 29)]) == ["blocks"]
    assert varied([listed(29), listed(11, 29), listed(14, 29)]) == ["blocks", "fusion_layers"]


def test_names_are_words():
    assert axis_name("layers") == "LM layers"
    assert axis_name("some_setting") == "some setting"


def test_a_value_has_its_setting_beside_it_where_it_needs_it():
    assert [named("blocks", n) for n in (1, 7)] == ["1 MM Block", "7 MM Blocks"]
    assert [named("modalities", heard) for heard in (["none"], "none", ["audio", "vision"])] == [
        "text alone",
        "text alone",
        "audio + vision",
    ]
    c = Configuration({"base": "small", "baseline": "ridge", "ffw_lora_r": "own"})
    assert c.label(["base", "blocks", "ffw_lora_r", "baseline"], " · ") == "small · own FFW LoRA rank · ridge baseline"
