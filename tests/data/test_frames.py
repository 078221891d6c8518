"""Frames from what users hand over: numbers and nothing else."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
import torch

from deepmlf_llm.data.frames import frames_of_width
from deepmlf_llm.errors import DataError

THREE = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize(
    "value",
    [
        THREE,
        [[1, 2, 3], [4, 5, 6]],
        tuple(map(tuple, THREE)),
        np.array(THREE, dtype=np.float16),
        np.array(THREE, dtype=np.int8),
        torch.tensor(THREE),
        [torch.tensor(row) for row in THREE],
        [np.array(row) for row in THREE],
        [[Decimal(1), 2, 3.0], [np.float64(4), np.int8(5), 6]],
        np.array(THREE, dtype=object),
    ],
)
def test_numbers_of_any_kind_are_read(value):
    found = frames_of_width("audio", value, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(THREE, dtype=np.float32))


def test_one_vector_is_one_frame_and_nothing_is_absent():
    assert frames_of_width("audio", [1, 2, 3], 3).tolist() == [[1, 2, 3]]
    assert frames_of_width("audio", [1], 1).tolist() == [[1]]
    for nothing in (None, [], (), np.empty((0, 3)), np.empty((0, 7)), torch.empty(0)):
        assert frames_of_width("audio", nothing, 3).shape == (0, 3)


def test_null_is_nan_and_what_float32_cannot_hold_is_infinite():
    found = frames_of_width("audio", [[None, 1e300, float("-inf")], [2**64, -(10**300), float("nan")]], 3)
    np.testing.assert_array_equal(found, [[np.nan, np.inf, -np.inf], [2.0**64, -np.inf, np.nan]])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("clip.npy", r"text \('clip.npy'\)"),
        (5, "audio is not a table of numbers but int"),
        (True, "true or false"),
        ({"a": [1, 2, 3]}, "an object"),
        (b"123", "bytes"),
        ([["1", "2", "3"]], r"not a table of numbers: it holds text \('1'\)"),
        ([[1, 2, "3"]], "it holds text"),
        ([[1, 2, "x" * 1_000_000]] * 1000, "it holds text"),
        ([[True, False, True]], "true or false"),
        ([[1, 2, 3], [1]], "rows differ in length"),
        ([[1, 2, 3], 4], "not a table of numbers"),
        ([[1, 2, 3], None], "not a table of numbers"),
        ([[1, 2, [3]]], "not a table of numbers"),
        ([[1, 2, {}]], "an object"),
        ([[10**400, 2, 3]], "a float can hold"),
        ([[1, 2]], r"shape \[1, 2\], but this model was trained on \[frames, 3\]"),
        ([1, 2], r"shape \[2\]"),
        ([THREE], r"shape \[1, 2, 3\]"),
        ([[]], r"shape \[1, 0\]"),
        (np.array("x"), "not a table of numbers"),
        (np.array([[True] * 3]), "it holds bool"),
        (np.array([[1j] * 3]), "it holds complex"),
        (np.float32(3), r"shape \[\]"),
    ],
)
def test_anything_else_is_refused_in_words(value, message):
    with pytest.raises(DataError, match=message):
        frames_of_width("audio", value, 3)


def test_deep_nesting_is_a_shape_like_any_other():
    value = 1.0
    for _ in range(200):
        value = [value]
    with pytest.raises(DataError, match="audio"):
        frames_of_width("audio", value, 3)
