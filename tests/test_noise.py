"""The documented stream of noise, which every runtime must draw alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdm_apple.diffusion.noise import MAX_SEED, NoiseStream, draw_batch
from mdm_apple.errors import MdmError

PINNED = [  # seed 7, first row of the outer level, then of the inner one
    [-0.6358714699745178, -1.2343865633010864, 1.7795177698135376, 0.8088502883911133],
    [-0.1000841036438942, 0.2541996240615845, -1.15525221824646, -0.26454654335975647],
]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, MAX_SEED), st.lists(st.sampled_from([2, 4, 6]), min_size=1, max_size=4))
def test_level_k_from_the_innermost_reads_randomstate_of_seed_and_k(
    seed: int, sides: list[int]
) -> None:
    stream = NoiseStream(seed, sides)
    draws = [stream.draw() for _ in range(3)]
    for place, side in enumerate(sides):
        k = len(sides) - 1 - place
        wanted = np.random.RandomState([seed, k]).standard_normal(3 * 3 * side * side)
        for number, draw in enumerate(draws):
            part = wanted[number * 3 * side * side :][: 3 * side * side]
            assert draw[place].dtype == np.float32
            np.testing.assert_array_equal(
                draw[place], part.reshape(3, side, side).astype(np.float32)
            )


def test_the_stream_starts_with_these_numbers() -> None:
    """For whoever writes the stream in another language."""
    first = NoiseStream(7, [2, 2]).draw()
    np.testing.assert_array_equal(np.stack(first)[:, 0].reshape(2, 4), np.array(PINNED, np.float32))


def test_no_level_consumes_another_ones_numbers() -> None:
    """So a run that stops early sees what the full run sees at its levels."""
    full, stopped = NoiseStream(3, [8, 4, 2]), NoiseStream(3, [4, 2])
    for _ in range(3):
        for a, b in zip(full.draw()[1:], stopped.draw(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_pictures_of_a_batch_have_their_own_streams() -> None:
    batch = draw_batch([NoiseStream(seed, [4, 2]) for seed in (5, 6)])
    assert [level.shape for level in batch] == [(2, 3, 4, 4), (2, 3, 2, 2)]
    for row, seed in enumerate((5, 6)):
        for level, alone in zip(batch, NoiseStream(seed, [4, 2]).draw(), strict=True):
            np.testing.assert_array_equal(level[row], alone)
    assert not np.array_equal(batch[0][0], batch[0][1])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(MdmError, match="seed: expected 0 to 4294967295"):
        NoiseStream(seed, [2])
