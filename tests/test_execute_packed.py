"""Numbers of fewer than eight bits come out of their bytes as they went in."""

from __future__ import annotations

import numpy as np
import pytest

from mdm_apple.conversion.execute.compressed import look_up
from mdm_apple.conversion.execute.coverage import PAGE, render
from mdm_apple.conversion.execute.packed import Packed, look_up_packed, take_values, unpack_bits
from mdm_apple.conversion.package_file.weightfile import pack

BITS = (1, 2, 3, 4, 6, 8)


def numbers(bits: int, count: int) -> np.ndarray:
    return np.random.RandomState(bits).randint(0, 1 << bits, count).astype(np.uint8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 15, 33, 1001, 400_009])
def test_unpacked_numbers_are_those_that_were_packed(bits: int, count: int) -> None:
    wanted = numbers(bits, count)
    assert np.array_equal(unpack_bits(pack(wanted, bits), bits, count), wanted)


@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_the_palette(bits: int) -> None:
    wanted = numbers(bits, 12_345)
    palette = np.random.RandomState(0).standard_normal(1 << bits).astype(np.float32)
    out = np.empty(len(wanted), np.float32)
    take_values(pack(wanted, bits), bits, palette, out)
    assert np.array_equal(out, palette[wanted])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("groups", [(1, 1, 1), (4, 1, 1), (1, 2, 1), (1, 1, 3), (2, 2, 1)])
def test_palettes_of_groups_are_looked_up_as_one_by_one(bits: int, groups: tuple[int, ...]) -> None:
    shape = (8, 32, 192)
    indices = numbers(bits, int(np.prod(shape)))
    lut = np.random.RandomState(1).standard_normal((*groups, 1 << bits, 1)).astype(np.float16)
    wanted = look_up(indices.reshape(shape), lut, None)
    got = look_up_packed(Packed(pack(indices, bits), bits, shape), lut)
    divided = [axis for axis in range(3) if groups[axis] > 1]
    assert (got is None) == (
        len(divided) > 1 or divided == [2] or (bits in (3, 6) and divided == [1])
    )
    if got is not None:
        assert got.dtype == np.float32
        assert np.array_equal(got, wanted)


def test_palettes_whose_groups_begin_within_a_byte_are_left_to_another_way() -> None:
    indices = Packed(np.zeros(5 * 3 * 4096 // 2 + 1, np.uint8), 1, (3, 8191))
    assert look_up_packed(indices, np.zeros((3, 1, 2, 1), np.float16)) is None


def test_page_of_operations_is_in_step_with_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == render()
