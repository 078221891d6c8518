"""Statistics of real, finite training values; what is not a number counted and replaced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.data import clean
from deepmlf_llm.data.clean import Standardisation, fit_standardisation, standardise
from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.errors import DataError


def ragged(values) -> Ragged:
    values = np.asarray(values, dtype=np.float32)
    return Ragged(values, np.array([0, len(values)]))


def test_equals_numpy_and_gives_zero_mean_and_unit_deviation(monkeypatch):
    monkeypatch.setattr(clean, "_BLOCK", 7)  # several blocks and an incomplete one
    values = np.random.default_rng(0).normal([1e4, -3, 1e-9], [2, 5, 1e-10], (100, 3)).astype(np.float32)
    fitted = fit_standardisation(ragged(values), clip=None)
    np.testing.assert_allclose(fitted.mean, values.mean(0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(fitted.std, values.std(0, dtype=np.float64), rtol=1e-9)
    assert fitted.constant == []
    result, _ = standardise(values, fitted)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(0), 1, atol=1e-5)


def test_values_that_are_no_numbers_are_counted_and_take_the_training_mean():
    values = np.array([[1, np.nan], [3, 4], [np.inf, 8], [-np.inf, np.nan]], dtype=np.float32)
    fitted = fit_standardisation(ragged(values))
    assert fitted.mean == [2.0, 6.0]
    assert fitted.std == [1.0, 2.0]
    result, cleaned = standardise(values, fitted)
    np.testing.assert_array_equal(result, [[-1, 0], [1, -1], [0, 1], [0, 0]])
    assert cleaned.to_dict() == {"nan": 2, "positive_inf": 1, "negative_inf": 1, "clipped": 0}


def test_clip_cuts_and_counts():
    fitted = Standardisation([0.0], [1.0], clip=2.0)
    result, cleaned = standardise(np.array([[1.0], [2.0], [-7.0], [np.inf]]), fitted)
    np.testing.assert_array_equal(result, [[1], [2], [-2], [0]])
    assert cleaned.clipped == 1


def test_constant_dimensions_become_zero_everywhere():
    values = np.array([[5.0, 1e6, 0.0, 1.0], [5.0, 1e6 + 0.0625, 0.0, 2.0]])
    fitted = fit_standardisation(ragged(values))
    assert fitted.constant == [0, 1, 2]  # the second varies by rounding of float32 only
    assert fitted.std[:3] == [1.0, 1.0, 1.0]
    assert standardise(np.full((2, 4), 99.0), fitted)[0][:, :3].tolist() == [[0.0] * 3] * 2


def test_dimension_without_a_finite_value_and_modality_without_a_frame():
    fitted = fit_standardisation(ragged([[np.nan, 1.0], [np.inf, 2.0]]))
    assert fitted.mean[0] == 0.0
    assert fitted.constant == [0]
    assert fit_standardisation(ragged(np.empty((0, 3)))).to_dict() == {
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "clip": clean.DEFAULT_CLIP,
        "constant": [0, 1, 2],
    }


def test_the_manifests_form_does_the_same_and_in_place():
    values = np.random.default_rng(0).normal(3, 2, (10, 2)).astype(np.float32)
    fitted = fit_standardisation(ragged(values))
    expected, _ = standardise(values, fitted)
    result, _ = standardise(values, fitted.to_dict(), out=values)
    assert result is values
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("shape", [(4, 3), (2,), (1, 2, 2)])
def test_other_dimensions_are_refused(shape):
    with pytest.raises(DataError, match=r"expected \(frames, 2\)"):
        standardise(np.zeros(shape), Standardisation([0.0, 0.0], [1.0, 1.0]))


@given(
    st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=8),
    st.lists(st.lists(st.floats(), min_size=2, max_size=2), min_size=1, max_size=8),
    st.sampled_from([None, 3.0]),
)
def test_the_result_is_finite_whatever_comes(training, features, clip):
    fitted = fit_standardisation(ragged(training), clip)
    assert np.isfinite(fitted.mean).all()
    assert np.isfinite(fitted.std).all()
    result, _ = standardise(np.array(features), fitted)
    assert np.isfinite(result).all()
    assert clip is None or np.abs(result).max() <= clip
