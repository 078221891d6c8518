"""Settings: strict, all problems at once, the same after any round trip."""

from __future__ import annotations

import dataclasses
import json
import math

import peft
import pytest
import yaml

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.rules import HELP, RULE
from deepmlf_llm.config.sections import SECTIONS, ModalityConfig
from deepmlf_llm.errors import ConfigError, DeepMLFError

MODALITIES = {"vision": {"dim": 20, "frame_rate": 15.0}, "audio": {"dim": 5, "features": {"kind": "covarep"}}}


def test_defaults_follow_the_paper_and_the_design():
    config = DeepMLFConfig()
    assert (config.num_fusion_tokens, config.fusion_layers, config.ffw_scope, config.gate) == (
        8,
        "even:7",
        "joint",
        "sigmoid",
    )
    assert (config.r, config.has_lm_lora, config.ffw_weights) == (0, False, "shared")
    objective = config.objective
    assert (objective.lambda_fusion, objective.lambda_av, objective.lambda_text, objective.gamma) == (
        0.4,
        0.8,
        0.8,
        0.0,
    )
    assert dataclasses.astuple(config.av_encoder) == (30, 3, 6, 120, 0.1, 0.0, 50, "before", "none")
    assert (config.gca_dropout, config.ffw_dropout) == (0.0, 0.0)
    assert (config.fusion_entry, config.fusion_token_init) == ("embedding", None)
    assert (config.freeze_fusion_tokens, config.truncate_lm) == (False, False)
    assert config.task_type == "CAUSAL_LM"
    assert isinstance(config, peft.LoraConfig)


def test_a_truncated_lm_has_no_last_layers_to_train():
    for settings, what in (({"r": 4}, r"LoRA on the LM"), ({"objective": {"gamma": 0.5}}, r"objective\.gamma > 0")):
        with pytest.raises(ConfigError, match=rf"truncate_lm=true with {what}.*last layers; num_layers cuts the base"):
            DeepMLFConfig(truncate_lm=True, **settings)
    DeepMLFConfig(truncate_lm=True, fusion_entry="first_block", freeze_fusion_tokens=True)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"modalities": MODALITIES, "fusion_layers": [11, 5], "gate": "tanh", "seqaug": {"p_apply": 0.2, "p_feat": 1}},
        {"r": 8, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1, "use_rslora": True},
        {"r": 8, "target_modules": "all-linear", "use_dora": True},
    ],
)
def test_round_trips_are_exact(settings, tmp_path):
    config = DeepMLFConfig(**settings)
    assert DeepMLFConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert DeepMLFConfig.from_dict(json.loads(config.to_json())).to_dict() == config.to_dict()
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(json.loads(config.to_json())))
    assert DeepMLFConfig.from_yaml(tmp_path / "settings.yaml").to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    for kind in (DeepMLFConfig, peft.PeftConfig):
        again = kind.from_pretrained(tmp_path)
        assert isinstance(again, DeepMLFConfig)
        # PEFT marks what it saves as meant for inference, we with the digest of its settings.
        apart = {"inference_mode": False, "settings_sha256": None}
        assert {**again.to_dict(), **apart} == {**config.to_dict(), **apart}


def test_settings_of_format_1_pool_after_the_layers():
    """They say nothing of it; new settings mean the paper's order, and say so from then on."""
    old = DeepMLFConfig().to_dict() | {"schema_version": 1}
    for key in ("pool", "feature_norm"):
        del old["av_encoder"][key]
    config = DeepMLFConfig.from_dict(old)
    assert (config.av_encoder.pool, config.av_encoder.feature_norm, config.schema_version) == ("after", "none", 2)
    assert DeepMLFConfig.from_dict(config.to_dict()).av_encoder.pool == "after"
    assert DeepMLFConfig.from_dict(old | {"schema_version": 2}).av_encoder.pool == "before"
    assert DeepMLFConfig(av_encoder={"width": 12}).av_encoder.pool == "before"
    old["av_encoder"]["pool"] = "before"
    assert DeepMLFConfig.from_dict(old).av_encoder.pool == "before"


def test_modalities_have_one_order_whatever_wrote_them():
    """PEFT sorts the keys of what it saves; the AV encoder joins modalities in order."""
    backwards = dict(reversed(list(MODALITIES.items())))
    assert list(DeepMLFConfig(modalities=MODALITIES).modalities) == ["audio", "vision"]
    assert list(DeepMLFConfig(modalities=backwards).modalities) == ["audio", "vision"]


def test_gamma_has_something_to_train_where_the_text_queries():
    config = DeepMLFConfig(objective={"gamma": 1}, ffw_scope="none", gca_queries="text", modalities=MODALITIES)
    assert config.blocks_change_text
    assert not DeepMLFConfig(ffw_scope="none", gca_queries="text").blocks_change_text


def test_every_problem_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        DeepMLFConfig(
            gate="relu", fusion_layers="evn:2", num_fusion_tokens=0, objective={"gamma": -1}, text=3, head_dropout=1,
            av_encoder={"width": 32}, seqaug={"p_feet": 1}, ffw_lora_alpha=float("nan"), target_modules=["q_proj"],
            modalities={"a_mask": {"dim": 2}, "audio": {"dims": 3}},
        )  # fmt: skip
    message = str(caught.value)
    for part in (
        "gate='relu': expected one of 'sigmoid', 'tanh', 'none'",
        "fusion_layers='evn:2': expected a list of distinct layer indices (from 0), 'last:k', 'even:k' or 'from:i'",
        "num_fusion_tokens=0: expected an integer >= 1",
        "objective.gamma=-1: expected a number >= 0",
        "text=3: expected a mapping",
        "head_dropout=1: expected a number in [0, 1)",
        "av_encoder.width=32 is not a multiple of num_heads=6",
        "seqaug: unknown key 'p_feet' (did you mean 'p_feat'?)",
        "ffw_lora_alpha=nan: expected a number >= 0",
        "target_modules=['q_proj']: LoRA on the LM is off (r=0)",
        "'a_mask' cannot name a modality",
        "modalities.audio: unknown key 'dims' (did you mean 'dim'?)",
    ):
        assert part in message
    assert isinstance(caught.value, DeepMLFError)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": {"gamma": 1}, "ffw_scope": "fusion"}, "gamma > 0 trains nothing with ffw_scope='fusion'"),
        ({"modalities": {"audio": {}}}, "modalities.audio.dim=0: expected an integer >= 1"),
        ({"modalities": ["audio"]}, r"modalities=\['audio'\]: expected a mapping"),
        ({"modalities": {"labels": {"dim": 1}}}, "'labels' cannot name a modality"),
        ({"modalities": {"heart rate": {"dim": 1}}}, "'heart rate' cannot name a modality"),
        ({"objective": {"loss": "huber"}}, "objective.loss='huber': expected one of 'l1', 'mse'"),
        ({"text": {"template": "no place"}}, "expected a string that holds {text} once"),
        ({"text": {"case": "upper"}}, "text.case='upper'"),
        ({"schema_version": 99}, "reads up to 2; upgrade deepmlf_llm"),
        ({"av_encoder": {"pool": "first"}}, "av_encoder.pool='first': expected one of 'before', 'after'"),
        ({"av_encoder": {"feature_norm": "layer"}}, "av_encoder.feature_norm='layer': expected one of 'none', 'batch'"),
        ({"gca_dropout": 1}, r"gca_dropout=1: expected a number in \[0, 1\)"),
        ({"ffw_dropout": "a"}, "ffw_dropout='a': expected a number"),
        ({"modalities": {"loss_counts": {"dim": 1}}}, "'loss_counts' cannot name a modality"),
        ({"r": -1, "target_modules": ["q_proj"]}, "r=-1: expected an integer >= 0"),
        ({"num_outputs": True}, "num_outputs=True: expected an integer >= 1"),
        ({"av_encoder": {"width": 15, "num_heads": 3}}, "positions need an even width"),
        ({"seqaug": {"p_apply": 1.5}}, r"seqaug.p_apply=1.5: expected a number in \[0, 1\]"),
        ({"objective": {"gamma": 1}, "ffw_scope": "none"}, "gamma > 0 trains nothing with ffw_scope='none'"),
        ({"gate": "none", "gate_init": -3}, "gate_init=-3: gate='none' has no value to start or to learn"),
        ({"gate": "none", "gca_gate_init": 0}, "gca_gate_init=0: gate='none'"),
        ({"gate": "none", "gate_per": "channel"}, "gate_per='channel': gate='none'"),
        ({"gate_init": 1000}, "gate_init=1000: expected a number"),
        ({"gca_queries": "all"}, "gca_queries='all': expected one of 'tokens', 'text', 'both'"),
        ({"head_base": "text", "objective": {"lambda_text": 0}}, "head_base='text' with objective.lambda_text=0"),
        ({"seqaug": {"embedding_noise": "0.1"}}, "seqaug.embedding_noise='0.1': expected a number >= 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DeepMLFConfig(**settings)


def test_unknown_keys_are_refused_with_the_nearest_known_one(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'num_fuson_tokens' \(did you mean 'num_fusion_tokens'\?\)"):
        DeepMLFConfig.from_dict({"num_fuson_tokens": 9})
    assert DeepMLFConfig.from_dict({"a_setting_of_a_later_peft": None}).r == 0
    path = tmp_path / "settings.yaml"
    for text, message in (
        ("gat: tanh", r"settings.yaml: DeepMLFConfig: unknown key 'gat' \(did you mean 'gate'\?\)"),
        ("- 1", "settings.yaml: expected a mapping of settings"),
        ("a: [", "settings.yaml: while parsing a flow node"),
        ("", "settings.yaml: expected a mapping of settings"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message) as caught:
            DeepMLFConfig.from_yaml(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"none\.yaml: .*No such file"):
        DeepMLFConfig.from_yaml(tmp_path / "none.yaml")


def test_every_field_says_what_it_is():
    for kind in (*SECTIONS.values(), ModalityConfig):
        assert all(field.metadata.get("help") for field in dataclasses.fields(kind)), kind
    ours = {f.name for f in dataclasses.fields(DeepMLFConfig)} - {f.name for f in dataclasses.fields(peft.LoraConfig)}
    helps = {f.name: f.metadata.get("help") for f in dataclasses.fields(DeepMLFConfig)}
    assert all(helps[name] for name in ours)
    for kind in (DeepMLFConfig, *SECTIONS.values()):
        for field in dataclasses.fields(kind):
            choices = getattr(field.metadata.get(RULE), "choices", ())
            assert all(choice in field.metadata[HELP] for choice in choices), field.name


WRONG = [
    None,
    [],
    ["sigmoid"],
    {},
    {"a": 1},
    "nonsense: [",
    "",
    math.nan,
    math.inf,
    -math.inf,
    10**30,
    10**5000,
    True,
    -1,
]
"""What a YAML file can hold and almost no setting takes."""
GOOD_ANYWAY = {
    "r": (), "num_fusion_tokens": (), "ffw_lora_alpha": (), "dequantize_copy": (True,), "modalities": ({},),
    "freeze_fusion_tokens": (True,), "truncate_lm": (True,), "freeze_av_encoder": (True,), "head_reads_av": (True,),
    "modalities.audio.features": ({}, {"a": 1}), "modalities.audio.provenance": ({}, {"a": 1}),
    "base_model_relative": ("nonsense: [",), "text.template": (), "package_versions": ({}, {"a": 1}),
    "gate_init": (-1,), "gca_gate_init": (-1,), "weights_sha256": ("nonsense: [",), "settings_sha256": ("nonsense: [",),
    "unimodal_targets": ([],), "objective.unimodal_labels": (True,),
    "av_encoder": ({},), "mixing_head": ({},), "objective": ({},), "seqaug": ({},), "text": ({},),
    **{f"seqaug.{name}": () for name in ("p_apply", "p_feat")},
    # of PEFT
    "base_model_name_or_path": ("nonsense: [", ""), "revision": ("nonsense: [", ""),
    "peft_version": ("nonsense: [", ""),
    "inference_mode": (True,), "use_rslora": (True,), "use_dora": (True,), "fan_in_fan_out": (True,),
    "init_lora_weights": (True,), "exclude_modules": ([], ["sigmoid"]), "loftq_config": ({},),
    "rank_pattern": ({}, {"a": 1}), "alpha_pattern": ({}, {"a": 1}),
}  # fmt: skip


def _every_path():
    skipped = {"peft_type", "auto_mapping"}
    for field in dataclasses.fields(DeepMLFConfig):
        if field.name not in skipped:
            yield field.name
    for name, section in SECTIONS.items():
        yield from (f"{name}.{field.name}" for field in dataclasses.fields(section))
    yield from (f"modalities.audio.{field.name}" for field in dataclasses.fields(ModalityConfig))


@pytest.mark.parametrize("path", list(_every_path()))
def test_a_value_of_another_kind_is_a_config_error_that_names_the_field(path):
    """Every field with all that YAML can hold: taken, where the field means it, or refused in one line."""
    parts = path.split(".")
    default = getattr(DeepMLFConfig(), path, "nested")
    for wrong in WRONG:
        values: dict = {"modalities": {"audio": {"dim": 3}}}
        inner = values
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
        inner[parts[-1]] = wrong
        good = GOOD_ANYWAY.get(path, ())
        if any(wrong is option or (type(wrong) is type(option) and wrong == option) for option in good):
            DeepMLFConfig.from_dict(values)
            continue
        if wrong is None and (default is None or path in OPTIONAL):
            DeepMLFConfig.from_dict(values)
            continue
        with pytest.raises(ConfigError) as caught:
            DeepMLFConfig.from_dict(values)
        message = str(caught.value)
        assert path in message, (path, message)
        assert "\n" not in message
        assert len(message) < 600


OPTIONAL = {
    "modalities.audio.frame_rate",
    "modalities.audio.standardisation",
    "target_modules",
    "task_type",
    "peft_version",
}
