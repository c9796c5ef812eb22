"""A Git LFS pointer in the place of a file is named as what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mdm_apple.conversion.execute.blob import WeightFile
from mdm_apple.conversion.execute.package import read_model
from mdm_apple.data.folder import open_folder
from mdm_apple.errors import MdmError
from mdm_apple.text.tokenizer import Tokenizer

pytestmark = pytest.mark.unit

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def picture(path: Path) -> object:
    path.with_suffix(".txt").write_text("a caption")
    return open_folder(path.parent, 8)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.png", picture),
        ("model.mlmodel", read_model),
        ("weight.bin", WeightFile),
        ("spiece.model", Tokenizer.load),
    ],
)
def test_a_pointer_is_not_taken_for_a_damaged_file(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER)
    with pytest.raises(MdmError, match=rf"{name}: a Git LFS pointer, not the .*; run git lfs pull"):
        read(path)
    path.write_bytes(b"neither" * 30)
    with pytest.raises(MdmError) as damaged:
        read(path)
    assert "LFS" not in str(damaged.value)
