from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.data.ragged import Ragged


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(1, 4))
def test_gives_back_each_sequence(lengths, dim):
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(length, dim)).astype(np.float16) for length in lengths]
    ragged = Ragged.from_sequences(sequences, dim)
    assert len(ragged) == len(lengths)
    assert ragged.lengths.tolist() == lengths
    assert ragged.dim == dim
    for frames, expected in zip(ragged, sequences, strict=True):
        assert frames.dtype == np.float32
        np.testing.assert_array_equal(frames, expected)


def test_select_copies_in_the_given_order():
    ragged = Ragged.from_sequences([np.full((length, 2), length) for length in (3, 0, 1)], 2)
    chosen = ragged.select([2, 0, 2])
    assert chosen.lengths.tolist() == [1, 3, 1]
    chosen.values[:] = 0
    assert ragged[0].min() == 3


def test_what_float32_cannot_hold_becomes_infinite():
    assert Ragged.from_sequences([np.array([[1e300, -1e300]])], 2)[0].tolist() == [[np.inf, -np.inf]]
