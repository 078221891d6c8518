"""The file of an AV encoder that was trained alone: exact round trip, damage and misfits refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deepmlf_llm.adapters.av_encoder_file import SETTINGS, WEIGHTS, read_av_encoder, write_av_encoder
from deepmlf_llm.adapters.seal import sealed
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.fusion.build import build_av_encoder

AUDIO = {
    "dim": 3,
    "frame_rate": 5.0,
    "features": {"encoder": "whisper", "layer": 4},
    "standardisation": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "clip": 5.0},
}


def config(**changes: Any) -> DeepMLFConfig:
    values: dict[str, Any] = {
        "av_encoder": {"width": 12, "num_layers": 1, "num_heads": 2, "ffw_width": 8},
        "modalities": {"audio": AUDIO, "vision": {"dim": 2}},
    }
    return DeepMLFConfig.from_dict(copy.deepcopy({**values, **changes}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder") / "av_encoder"
    torch.manual_seed(0)
    write_av_encoder(directory, build_av_encoder(config()).state_dict(), config(), "last")
    return directory


def test_round_trip(saved: Path) -> None:
    torch.manual_seed(0)
    encoder, file = build_av_encoder(config()), read_av_encoder(saved)
    assert {p.name for p in saved.iterdir()} == {WEIGHTS, SETTINGS}
    assert file.tensors.keys() == encoder.state_dict().keys()
    assert all(torch.equal(file.tensors[name], value.cpu()) for name, value in encoder.state_dict().items())
    assert (file.readout, file.config.modalities["audio"].standardisation) == ("last", AUDIO["standardisation"])
    assert file.check(config()) == []


def changed_json(directory: Path, seal: bool = False, **changes: Any) -> None:
    path = directory / SETTINGS
    values = {**json.loads(path.read_text()), **changes}
    values = {name: value for name, value in values.items() if value is not None}
    path.write_text(sealed(values) if seal else json.dumps(values))


DAMAGE: dict[str, tuple[Any, str]] = {
    "no settings": (lambda d: (d / SETTINGS).unlink(), f"no {SETTINGS}: expected the directory of an AV encoder"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), f"no {WEIGHTS}"),
    "a flipped byte": (
        lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-1] + b"x"),
        r"its sha256 is not the one in av_encoder\.json",
    ),
    "cut": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:100]), "damaged"),
    "no JSON": (lambda d: (d / SETTINGS).write_text("{"), "is not JSON"),
    "an adapter": (lambda d: (d / SETTINGS).write_text('{"peft_type": "DEEPMLF"}'), "of kind None, expected"),
    "edited": (lambda d: changed_json(d, readout="mean"), "edited: its settings are not those of settings_sha256"),
    "newer": (lambda d: changed_json(d, seal=True, schema_version=2), "schema_version=2; this package reads up to 1"),
    "a key less": (lambda d: changed_json(d, seal=True, readout=None), "not saved whole: no readout"),
    "a key more": (lambda d: changed_json(d, seal=True, colour="red"), "edited"),
    "out of range": (
        lambda d: changed_json(d, seal=True, av_encoder={"width": 7}),
        "av_encoder.width=7 is not a multiple",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused(saved: Path, tmp_path: Path, case: str) -> None:
    damage, words = DAMAGE[case]
    copied = Path(shutil.copytree(saved, tmp_path / "copy"))
    damage(copied)
    with pytest.raises(AdapterError, match=words):
        read_av_encoder(copied)


def audio(**changes: Any) -> dict[str, Any]:
    return {"modalities": {"audio": {**AUDIO, **changes}, "vision": {"dim": 2}}}


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "frames": ({"av_encoder": {"max_frames": 55}}, r"av_encoder.max_frames=50 there, 55 here"),
    "norm": ({"av_encoder": {"feature_norm": "batch"}}, r"av_encoder.feature_norm='none' there, 'batch' here"),
    "order": ({"av_encoder": {"pool": "after"}}, r"av_encoder.pool='before' there, 'after' here"),
    "dimensions": (audio(dim=4, standardisation=None), "the data: 'audio' has 4 dimensions, expected 3"),
    "rate": (audio(frame_rate=10.0), "'audio' has 10 frames a second, expected 5"),
    "recipe": (audio(features={"encoder": "whisper", "layer": 6}), "another feature recipe .*layer 6, expected 4"),
    "numbers": (
        audio(standardisation={"mean": [0.0] * 3, "std": [1.0] * 3}),
        "'audio' was standardised by other numbers",
    ),
    "unstandardised": (audio(standardisation=None), "'audio' was standardised by other numbers"),
    "one fewer": ({"modalities": {"audio": AUDIO}}, "the data: no 'vision'"),
    "one more": (
        {"modalities": {"audio": AUDIO, "vision": {"dim": 2}, "heart": {"dim": 1}}},
        "it has no 'heart', it reads audio, vision",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_by_name(saved: Path, case: str) -> None:
    changes, words = MISFITS[case]
    if "av_encoder" in changes:
        changes = {"av_encoder": {**dataclasses.asdict(config().av_encoder), **changes["av_encoder"]}}
    with pytest.raises(AdapterError, match=words):
        read_av_encoder(saved).check(config(**changes))


def test_what_only_training_sees_may_differ_and_is_said(saved: Path) -> None:
    other = {**dataclasses.asdict(config().av_encoder), "dropout": 0.3}
    assert read_av_encoder(saved).check(config(av_encoder=other)) == ["av_encoder.dropout=0.1 there, 0.3 here"]


def test_all_misfits_are_said_at_once(saved: Path) -> None:
    other = {**dataclasses.asdict(config().av_encoder), "width": 24, "max_frames": 9}
    with pytest.raises(AdapterError, match=r"width=12 there, 24 here; .*max_frames=50 there, 9 here"):
        read_av_encoder(saved).check(config(av_encoder=other))
