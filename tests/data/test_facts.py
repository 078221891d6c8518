"""What was computed is compared; where it came from is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deepmlf_llm.data.facts import FeatureRecipe, feature_problems, provenance_of

OLD = {"kind": "precomputed", "source": "mosi.pkl", "fingerprint": "ab12"}
NEW = {"kind": "precomputed"}
WAVLM = {"kind": "encoder", "encoder": "wavlm-base", "layer": 9}


def trained(dim=5, frame_rate=None, features=None, **others):
    return {"audio": SimpleNamespace(dim=dim, frame_rate=frame_rate, features=features or {}, **others)}


def given(dim=5, **facts):
    return {"audio": {"dim": dim, **facts}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (OLD, {**OLD, "source": "saved again.pkl", "fingerprint": "cd34"}),
        (OLD, NEW),
        (OLD, WAVLM),  # nothing is known of the one, so nothing differs
        (WAVLM, NEW),
        (WAVLM, {}),
        (WAVLM, {**WAVLM, "source": "other.pkl", "fingerprint": "cd34"}),
    ],
)
def test_another_file_of_the_same_features_fits(before, after):
    assert feature_problems(trained(features=before), given(features=after)) == []
    assert feature_problems(trained(features=after), given(features=before)) == []


@pytest.mark.parametrize("other", [{"layer": 6}, {"encoder": "hubert"}, {"pooling": "mean"}, {"kind": "covarep"}])
def test_another_computation_does_not(other):
    (problem,) = feature_problems(trained(features=WAVLM), given(features={**WAVLM, **other}))
    assert f"another feature recipe (it differs in {next(iter(other))}: " in problem


def test_dimension_and_rate_belong_to_the_recipe_where_they_are_known():
    assert feature_problems(trained(frame_rate=50.0), given(frame_rate=None)) == []
    assert feature_problems(trained(frame_rate=50.0), given(frame_rate=50)) == []
    (rate,) = feature_problems(trained(frame_rate=50.0), given(frame_rate=25.0))
    assert rate == "'audio' has 25 frames a second, expected 50"
    assert feature_problems(trained(), given(dim=6)) == ["'audio' has 6 dimensions, expected 5"]
    assert feature_problems(trained(), {}) == ["no 'audio'"]


def test_provenance_of_any_version():
    assert provenance_of({"features": OLD}) == {"source": "mosi.pkl", "fingerprint": "ab12"}
    new = {"features": NEW, "provenance": {"source": "mosi.pkl", "sha256": "ab"}}
    assert provenance_of(new) == provenance_of(SimpleNamespace(**new)) == {"source": "mosi.pkl", "sha256": "ab"}
    assert provenance_of({}) == {}
    assert FeatureRecipe.of({"features": OLD}).describe() == ""
    assert FeatureRecipe.of({"features": WAVLM}).describe() == "kind encoder, encoder wavlm-base, layer 9"
