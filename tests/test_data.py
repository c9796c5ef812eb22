"""Captioned pictures: the emoji that come with a package, and folders that mean harm."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mdm_apple.data.dataset import DataError, with_captions
from mdm_apple.data.open import open_dataset
from mdm_apple.data.read_picture import MAX_PIXELS
from mdm_apple.text.captions import clean_caption

SIDE = 16
CASES = Path(__file__).parents[2] / "shared" / "cases"


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, so that every turn and flip shows."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 40)], -1).astype(np.uint8))


def save(folder: Path, name: str, image: Image.Image, caption: str = "a picture") -> Path:
    path = folder / name
    image.save(path)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def pixels(folder: Path, side: int = SIDE) -> np.ndarray:
    return open_dataset(str(folder), side).item(0).image


def refusal(folder: Path) -> str:
    """The one sentence with which opening the folder or reading its pictures ends."""

    def read_all() -> None:
        dataset = open_dataset(str(folder), SIDE)
        for index in range(len(dataset)):
            dataset.item(index)

    with pytest.raises(DataError) as caught:
        read_all()
    message = str(caught.value)
    assert message.isprintable(), "one line, safe for a terminal"
    return message


def write_metadata(folder: Path, *lines: object) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(text), encoding="utf-8")


# --- twemoji ------------------------------------------------------------------------------------


def test_twemoji_has_3953_captioned_pictures_of_which_1918_without_skin_tone():
    every, plain = open_dataset("twemoji", SIDE, skin_tones=True), open_dataset("twemoji", SIDE)
    assert (len(every), len(plain)) == (3953, 1918)
    for dataset in (every, plain):
        captions = [caption.lower() for caption in dataset.captions()]
        assert len(set(captions)) == len(captions), "unique also for a tokenizer that lower-cases"
    assert set(plain.captions()) < set(every.captions())
    assert not any("skin tone" in caption for caption in plain.captions())


def test_twemoji_captions_are_plain_english_names():
    captions = open_dataset("twemoji", SIDE).captions()
    assert {"red heart", "Algeria", "man astronaut", "keycap 1", "watermelon"} <= set(captions)
    assert not any(char in caption for caption in captions for char in "_:")


def test_twemoji_pictures_are_drawn_at_the_side_asked_on_white():
    for side in (17, 64):
        dataset = open_dataset("twemoji", side)
        item = dataset.item(dataset.captions().index("red heart"))
        assert item.image.shape == (side, side, 3)
        assert item.image.dtype == np.uint8
        assert item.scale == side
        assert (item.image[0, 0] == 255).all()
        red, green, blue = (int(v) for v in item.image[side // 2, side // 2])
        assert red > 180
        assert green < 80
        assert blue < 90


def test_the_drawing_that_is_not_square_is_padded_above_and_below():
    dataset = open_dataset("twemoji", 64)
    image = dataset.item(dataset.captions().index("watermelon")).image
    drawn = np.flatnonzero((image < 250).any(axis=(1, 2)))
    assert abs(drawn[0] - (63 - drawn[-1])) <= 2, "centred"
    assert drawn[0] >= 7


def test_color_background_is_plain_and_differs_between_pictures():
    white, color = (open_dataset("twemoji", SIDE, background=b) for b in ("white", "color"))
    index = white.captions().index("red heart")
    outside = (white.item(index).image == 255).all(-1)
    assert len(np.unique(color.item(index).image[outside], axis=0)) == 1
    corners = {color.item(i).image[0, 0].tobytes() for i in range(index, index + 40)}
    assert len(corners) > 3
    again = open_dataset("twemoji", SIDE, background="color")
    np.testing.assert_array_equal(color.item(index).image, again.item(index).image)
    assert color.fingerprint == again.fingerprint != white.fingerprint


def test_a_picture_cannot_be_changed_by_who_receives_it():
    image = open_dataset("twemoji", SIDE).item(3).image
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 0


# --- layouts of a folder ------------------------------------------------------------------------


def test_pictures_with_text_files_are_read_in_name_order(tmp_path: Path):
    save(tmp_path, "b.png", gradient(32, 32), "second")
    save(tmp_path, "a.jpg", gradient(32, 32), "\ufefffirst\x1b[31m\none \x00line\u202e")
    save(tmp_path, "c.webp", gradient(32, 32), "")
    save(tmp_path, "D.BMP", gradient(32, 32), "capital")
    dataset = open_dataset(str(tmp_path), SIDE)
    assert dataset.captions() == ["capital", "first [31m one line", "second", ""]
    assert dataset.warnings == []


def test_files_that_are_not_used_are_named(tmp_path: Path):
    save(tmp_path, "a.png", gradient(32, 32))
    save(tmp_path, "moving.gif", gradient(32, 32))
    gradient(32, 32).save(tmp_path / "bare.png")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    dataset = open_dataset(str(tmp_path), SIDE)
    assert len(dataset) == 1
    (warning,) = dataset.warnings
    assert "3 files" in warning
    assert all(n in warning for n in ("bare.png", "moving.gif"))
    assert ".DS_Store" not in warning


def test_class_folders_give_their_name_as_caption(tmp_path: Path):
    for name in ("tabby_cat", "big-dog"):
        (tmp_path / name).mkdir()
        gradient(32, 32).save(tmp_path / name / "1.png")
    (tmp_path / "big-dog" / "notes.md").write_text("x")
    (tmp_path / "empty").mkdir()
    dataset = open_dataset(str(tmp_path), SIDE)
    assert dataset.captions() == ["big dog", "tabby cat"]
    assert "big-dog/notes.md" in dataset.warnings[0]


def test_metadata_lines_give_captions_in_their_order(tmp_path: Path):
    (tmp_path / "train").mkdir()
    gradient(32, 32).save(tmp_path / "train" / "1.png")
    gradient(32, 32).save(tmp_path / "2.png")
    write_metadata(
        tmp_path,
        {"file_name": "train/1.png", "text": "one", "extra": 5},
        "",
        {"file_name": "2.png", "text": "two"},
        {"file_name": "train/1.png", "text": "one again"},
    )
    dataset = open_dataset(str(tmp_path), SIDE)
    assert dataset.captions() == ["one", "two", "one again"]


def test_folders_of_two_layouts_are_refused(tmp_path: Path):
    captioned = tmp_path / "captioned"
    captioned.mkdir()
    picture = save(captioned, "a.png", gradient(8, 8))
    write_metadata(captioned, {"file_name": "a.png", "text": "x"})
    assert "unclear" in refusal(captioned)

    (captioned / "metadata.jsonl").unlink()
    (captioned / "cats").mkdir()
    gradient(8, 8).save(captioned / "cats" / "1.png")
    assert "unclear" in refusal(captioned)

    picture.unlink()
    picture.with_suffix(".txt").unlink()
    (captioned / "cats" / "1.txt").write_text("a cat")
    assert open_dataset(str(captioned), SIDE).captions() == ["a cat"]
    (captioned / "dogs").mkdir()
    gradient(8, 8).save(captioned / "dogs" / "2.png")
    assert "unclear" in refusal(captioned)


def test_folders_without_captioned_pictures_are_refused(tmp_path: Path):
    assert "no such folder" in refusal(tmp_path / "missing")
    assert "no captioned picture" in refusal(tmp_path)
    gradient(8, 8).save(tmp_path / "bare.png")
    assert "bare.png" in refusal(tmp_path)
    assert "no such folder" in refusal(tmp_path / "bare.png")


def test_emoji_options_are_refused_for_a_folder(tmp_path: Path):
    save(tmp_path, "a.png", gradient(8, 8))
    with pytest.raises(DataError, match="twemoji only"):
        open_dataset(str(tmp_path), SIDE, skin_tones=True)


def test_small_pictures_are_enlarged_counted_and_keep_their_true_scale(tmp_path: Path):
    save(tmp_path, "a.png", gradient(40, 9))
    save(tmp_path, "b.png", gradient(90, 70), "another picture")
    dataset = open_dataset(str(tmp_path), SIDE)
    assert [dataset.item(i).scale for i in range(2)] == [9.0, 70.0]
    assert dataset.item(0).image.shape == (SIDE, SIDE, 3)
    (warning,) = dataset.warnings
    assert "1 of 2" in warning
    assert "a.png" in warning
    assert "9 px" in warning


def test_fingerprint_follows_names_sizes_captions_and_side(tmp_path: Path):
    path = save(tmp_path, "a.png", gradient(32, 32), "one")
    first = open_dataset(str(tmp_path), SIDE).fingerprint
    assert first == open_dataset(str(tmp_path), SIDE).fingerprint
    seen = {first, open_dataset(str(tmp_path), SIDE + 1).fingerprint}
    path.with_suffix(".txt").write_text("two")
    seen.add(open_dataset(str(tmp_path), SIDE).fingerprint)
    save(tmp_path, "a.png", gradient(50, 32), "one")
    seen.add(open_dataset(str(tmp_path), SIDE).fingerprint)
    path.rename(tmp_path / "b.png")
    path.with_suffix(".txt").rename(tmp_path / "b.txt")
    seen.add(open_dataset(str(tmp_path), SIDE).fingerprint)
    assert len(seen) == 5


# --- decoding -----------------------------------------------------------------------------------


def test_a_picture_of_the_side_asked_is_handed_out_unchanged(tmp_path: Path):
    save(tmp_path, "a.png", gradient(SIDE, SIDE))
    np.testing.assert_array_equal(pixels(tmp_path), np.asarray(gradient(SIDE, SIDE)))


def test_the_centre_is_cropped(tmp_path: Path):
    image = Image.new("RGB", (3 * SIDE, SIDE), "red")
    image.paste("blue", (SIDE, 0, 2 * SIDE, SIDE))
    save(tmp_path, "a.png", image)
    middle = pixels(tmp_path)[:, 4:-4]
    assert (middle == (0, 0, 255)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int):
    upright = np.asarray(gradient(SIDE, SIDE)).astype(int)
    undo = {  # what a camera stores so that this orientation shows the upright picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation]).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("x")
    np.testing.assert_array_equal(pixels(tmp_path), upright)


def test_a_large_jpeg_with_rotation_comes_out_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient(600, 400).rotate(90, expand=True).save(tmp_path / "a.jpg", exif=exif, quality=95)
    (tmp_path / "a.txt").write_text("x")
    dataset = open_dataset(str(tmp_path), SIDE)
    expected = (
        gradient(600, 400).crop((100, 0, 500, 400)).resize((SIDE, SIDE), Image.Resampling.BOX)
    )
    np.testing.assert_allclose(dataset.item(0).image, np.asarray(expected), atol=4)
    assert dataset.item(0).scale == 400


def converted(mode: str) -> Image.Image:
    return gradient(SIDE, SIDE).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_every_png_mode_becomes_rgb(tmp_path: Path, mode: str):
    save(tmp_path, "a.png", converted(mode))
    np.testing.assert_array_equal(pixels(tmp_path), np.asarray(converted(mode).convert("RGB")))


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    (tmp_path / "a.txt").write_text("x")
    np.testing.assert_allclose(pixels(tmp_path)[8, 8], (255, 0, 0), atol=6)


def test_sixteen_bit_png_keeps_its_tones(tmp_path: Path):
    levels = np.linspace(0, 65535, SIDE)[None, :].repeat(SIDE, 0).astype(np.uint16)
    save(tmp_path, "a.png", Image.fromarray(levels))
    expected = np.round(levels / 257)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(pixels(tmp_path), expected)


def test_transparency_goes_over_white(tmp_path: Path):
    image = Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, SIDE, SIDE // 2))
    image.paste((0, 0, 0, 128), (0, SIDE - 4, SIDE, SIDE))
    save(tmp_path, "a.png", image)
    got = pixels(tmp_path)
    assert got[0, 0].tolist() == [0, 0, 255]
    assert got[SIDE // 2 + 2, 0].tolist() == [255, 255, 255]
    assert got[-1, 0].tolist() == [127, 127, 127]


def test_a_transparent_palette_color_goes_over_white(tmp_path: Path):
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.paste(0, (0, 0, SIDE, 4))
    image.save(tmp_path / "a.png", transparency=0)
    (tmp_path / "a.txt").write_text("x")
    got = pixels(tmp_path)
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[-1, 0].tolist() == [10, 20, 30]


def gamma_one_profile() -> bytes:
    """A small ICC profile of sRGB's primaries with linear tones, written by hand."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    xyz = {
        b"wtpt": (0.9642, 1.0, 0.8249),
        b"rXYZ": (0.4361, 0.2225, 0.0139),
        b"gXYZ": (0.3851, 0.7169, 0.0971),
        b"bXYZ": (0.1431, 0.0606, 0.7141),
    }
    tags = {k: b"XYZ \0\0\0\0" + b"".join(map(fixed, v)) for k, v in xyz.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv\x00\x00\x00\x00\x00\x00\x00\x00")
    tags[b"desc"] = b"desc\0\0\0\0\0\0\0\2l\0" + bytes(78)
    table, body, offset = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(
        ">I4sI4s4s4s", offset + len(body), b"", 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, xyz[b"wtpt"]))
    return header.ljust(128, b"\0") + table + body


def test_a_color_profile_is_converted_to_srgb(tmp_path: Path):
    profile = gamma_one_profile()
    ImageCms.ImageCmsProfile(io.BytesIO(profile))  # it is a profile
    Image.new("RGB", (SIDE, SIDE), (55, 55, 55)).save(tmp_path / "a.png", icc_profile=profile)
    (tmp_path / "a.txt").write_text("x")
    linear = 55 / 255
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(pixels(tmp_path), expected, atol=2)


@pytest.mark.parametrize("profile", [b"not a profile", gamma_one_profile()])
def test_a_profile_that_does_not_fit_is_ignored(tmp_path: Path, profile: bytes):
    Image.new("L", (SIDE, SIDE), 55).save(tmp_path / "a.png", icc_profile=profile)
    (tmp_path / "a.txt").write_text("x")
    assert (pixels(tmp_path) == 55).all()


# --- hostile files ------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(k, b) for k, b in chunks)


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 9_500), (9_000, MAX_PIXELS // 8_999)])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int]
):
    bomb = png(*size, zlib.compress(bytes(1_000_000), 9))
    assert len(bomb) < 5_000
    (tmp_path / "bomb.png").write_bytes(bomb)
    (tmp_path / "bomb.txt").write_text("boom")
    message = refusal(tmp_path)
    assert "bomb.png" in message
    assert "million pixels" in message


def test_a_very_long_picture_stays_small(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(1_000_000, 1, zlib.compress(bytes(3_000_001))))
    (tmp_path / "a.txt").write_text("x")
    assert (pixels(tmp_path) == 0).all()


@pytest.mark.parametrize("size", [2_000_000, 80_000_000])
def test_a_compressed_text_of_any_size_is_left_alone(tmp_path: Path, size: int):
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size), 9))
    (tmp_path / "a.png").write_bytes(png(8, 8, zlib.compress(bytes(8 * 25)), text))
    (tmp_path / "a.txt").write_text("x")
    tracemalloc.start()
    assert (pixels(tmp_path) == 0).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000  # at 80 MB it was never inflated


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_damaged_exif_does_not_refuse_the_pixels(tmp_path: Path, suffix: str):
    exif = b"Exif\0\0{'Orientation': 6, 'a python repr': True}"
    gradient(32, 32).save(tmp_path / f"a.{suffix}", exif=exif)
    (tmp_path / "a.txt").write_text("x")
    assert pixels(tmp_path).any()


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
def test_the_case_of_broken_exif_is_read():
    assert pixels(CASES / "broken_exif").any()


def test_all_pictures_of_a_caption_are_kept(tmp_path: Path):
    for name, caption in (("a", "cat"), ("b", "dog"), ("c", "cat")):
        save(tmp_path, f"{name}.png", gradient(32, 32 + ord(name)), caption)
    dataset = open_dataset(str(tmp_path), SIDE)
    kept = with_captions(dataset, ["cat"])
    assert kept.captions() == ["cat", "cat"]
    assert np.array_equal(kept.item(1).image, dataset.item(2).image)
    assert with_captions(dataset, ["dog", "cat"]).captions() == ["dog", "cat", "cat"]


@pytest.mark.parametrize(
    ("stored", "asked"), [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9")]
)
def test_captions_are_chosen_however_accents_are_written(tmp_path: Path, stored: str, asked: str):
    save(tmp_path, "a.png", gradient(32, 32), stored)
    save(tmp_path, "b.png", gradient(32, 32), "cafe")
    assert with_captions(open_dataset(str(tmp_path), SIDE), [asked]).captions() == [stored]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9])
def test_a_truncated_picture_is_refused_by_name(tmp_path: Path, name: str, keep: float):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path, name, Image.fromarray(noise))
    whole = path.read_bytes()
    assert open_dataset(str(tmp_path), SIDE).item(0).image.any()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert name in refusal(tmp_path)


@pytest.mark.parametrize("start", [45, 60])
def test_pixels_that_end_in_zeros_are_refused(tmp_path: Path, start: int):
    """Asking a PNG for its EXIF decodes it, and damaged EXIF refuses nothing: black was trained."""
    path = save(tmp_path, "a.png", gradient(32, 32))
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + bytes(len(whole) - start))
    assert "broken data stream" in refusal(tmp_path)


@pytest.mark.parametrize("size", [2_000_000, 80_000_000])
def test_a_text_behind_the_pixels_does_not_refuse_them(tmp_path: Path, size: int):
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size), 9))
    path = save(tmp_path, "a.png", gradient(SIDE, SIDE))
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + png(1, 1, b"", text)[33:][: len(text[1]) + 12] + whole[-12:])
    np.testing.assert_array_equal(pixels(tmp_path), np.asarray(gradient(SIDE, SIDE)))


# --- decoration that is damaged -----------------------------------------------------------------


def chunk(kind: bytes, body: bytes, *, crc: bool = True) -> bytes:
    check = zlib.crc32(kind + body) ^ (not crc)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


BAD_CHUNKS = {
    "text with a wrong CRC": chunk(b"tEXt", b"Comment\0x", crc=False),
    "EXIF with a wrong CRC": chunk(b"eXIf", b"MM\0*\0\0\0\x08", crc=False),
    "short pHYs": chunk(b"pHYs", b"\0\0"),
    "short gAMA": chunk(b"gAMA", b"\0"),
    "short cHRM": chunk(b"cHRM", b"\0" * 5),
    "empty sRGB": chunk(b"sRGB", b""),
    "short tRNS": chunk(b"tRNS", b"\0\0\0"),
    "profile of no method": chunk(b"iCCP", b"name\0\x07" + zlib.compress(b"x")),
    "profile without a name": chunk(b"iCCP", b"x"),
    "long profile": chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(1_500_000))),
    "text of no method": chunk(b"zTXt", b"Comment\0\x07x"),
    "short acTL": chunk(b"acTL", b"\0\0"),
    "short fcTL": chunk(b"acTL", b"\0\0\0\x02\0\0\0\0") + chunk(b"fcTL", b"\0\0"),
}


@pytest.mark.parametrize("what", BAD_CHUNKS)
@pytest.mark.parametrize("behind", [False, True])
def test_damaged_decoration_of_a_png_does_not_refuse_its_pixels(
    tmp_path: Path, what: str, behind: bool
):
    path = save(tmp_path, "a.png", gradient(SIDE, SIDE))
    whole = path.read_bytes()
    place = len(whole) - 12 if behind else 33  # behind the pixels or the header
    path.write_bytes(whole[:place] + BAD_CHUNKS[what] + whole[place:])
    np.testing.assert_array_equal(pixels(tmp_path), np.asarray(gradient(SIDE, SIDE)))


def test_beside_damaged_decoration_the_sound_one_counts(tmp_path: Path):
    bad = BAD_CHUNKS["text with a wrong CRC"]
    exif = Image.Exif()
    exif[0x0112] = 3
    path = save(tmp_path, "a.png", gradient(SIDE, SIDE))
    gradient(SIDE, SIDE).save(path, exif=exif, icc_profile=gamma_one_profile())
    expected = pixels(tmp_path)
    assert (expected != np.asarray(gradient(SIDE, SIDE))).any()
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + bad + whole[33:])
    np.testing.assert_array_equal(pixels(tmp_path), expected)
    clear = Image.new("P", (SIDE, SIDE), 0)
    clear.putpalette([0, 0, 0, 10, 20, 30])
    clear.save(path, transparency=0)
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + bad + whole[33:])
    assert (pixels(tmp_path) == 255).all()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


BAD_SEGMENTS = {
    "short APP14": segment(0xEE, b"Adobe"),
    "short JFIF": segment(0xE0, b"JFIF\0\x01"),
    "short ICC": segment(0xE2, b"ICC_PROFILE\0"),
    "short Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x04\0"),
}


@pytest.mark.parametrize("what", BAD_SEGMENTS)
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_short_segment_of_a_jpeg_does_not_refuse_its_pixels(tmp_path: Path, what: str, mode: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    gradient(32, 32).convert(mode).save(path, exif=exif, quality=95)
    path.with_suffix(".txt").write_text("x")
    expected = pixels(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:2] + BAD_SEGMENTS[what] + whole[2:])
    np.testing.assert_array_equal(pixels(tmp_path), expected)


def test_a_webp_may_end_within_its_exif(tmp_path: Path):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    path = tmp_path / "a.webp"
    gradient(SIDE, SIDE).save(path, exif=exif, lossless=True)
    path.with_suffix(".txt").write_text("x")
    whole = path.read_bytes()
    assert b"EXIF" in whole[-60:]
    path.write_bytes(whole[:-4])
    np.testing.assert_array_equal(pixels(tmp_path), np.asarray(gradient(SIDE, SIDE)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_damaged_pixels_stay_refused_beside_damaged_decoration(tmp_path: Path, name: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path, name, Image.fromarray(noise))
    whole = path.read_bytes()
    if name == "a.png":
        bad = BAD_CHUNKS["short pHYs"]
        path.write_bytes(whole[:33] + bad + whole[33:-2000] + bytes(1000) + whole[-1000:])
    elif name == "a.jpg":
        path.write_bytes(whole[:2] + BAD_SEGMENTS["short JFIF"] + whole[2:-500])
    else:
        path.write_bytes(whole[:-500])
    assert name in refusal(tmp_path)


def test_damaged_pictures_never_end_in_anything_but_a_refusal(tmp_path: Path):
    rng = np.random.default_rng(1)
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        folder = tmp_path / name
        folder.mkdir()
        path = save(folder, name, gradient(48, 48))
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            places = rng.integers(0, min(len(whole), 400), 6)
            damaged[places] = rng.integers(0, 256, 6)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(DataError):
                assert pixels(folder).shape == (SIDE, SIDE, 3)


def test_other_formats_under_a_picture_name_are_not_decoded(tmp_path: Path):
    buffer = io.BytesIO()
    gradient(8, 8).save(buffer, "GIF")
    for content in (buffer.getvalue(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        (tmp_path / "a.png").write_bytes(content)
        (tmp_path / "a.txt").write_text("x")
        assert "a.png" in refusal(tmp_path)


def test_a_picture_that_vanishes_after_opening_is_refused_by_name(tmp_path: Path):
    path = save(tmp_path, "a.png", gradient(8, 8))
    dataset = open_dataset(str(tmp_path), SIDE)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png: no such file"):
        dataset.item(0)


def test_bad_captions_are_refused_by_name(tmp_path: Path):
    caption = save(tmp_path, "a.png", gradient(8, 8)).with_suffix(".txt")
    caption.write_bytes(b"x" * 65_537)
    message = refusal(tmp_path)
    assert "a.txt" in message
    assert "64 KiB" in message
    caption.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(tmp_path)


def test_captions_lose_control_characters_and_keep_letters():
    assert clean_caption(" a\tb\r\nc\x07\x9b\u2028d\ud800 ") == "a b c d"
    assert clean_caption("café 猫 👩\u200d💻") == "café 猫 👩\u200d💻"


BAD_LINES: list[tuple[object, str]] = [
    ("{", "line 2"),
    ("[1, 2]", "line 2"),
    ("[" * 100_000, "line 2"),
    ("9" * 10_000, "line 2"),
    ({"file_name": "a.png", "caption": "x"}, '"text"'),
    ({"file_name": 5, "text": "x"}, '"file_name"'),
    ({"file_name": "a.png", "text": None}, '"text"'),
    ({"file_name": "a.png", "text": "x" * 65_537}, "64 KiB"),
    ('{"file_name": "a.png", "text": "' + "x" * 600_000 + '"}', "longer"),
    ({"file_name": "../outside.png", "text": "x"}, "leads out"),
    ({"file_name": "{outside}", "text": "x"}, "leads out"),
    ({"file_name": "link.png", "text": "x"}, "leads out"),
    ({"file_name": "linked/outside.png", "text": "x"}, "leads out"),
    ({"file_name": "missing.png", "text": "x"}, "no such file"),
    ({"file_name": "folder.png", "text": "x"}, "no such file"),
    ({"file_name": "pipe.png", "text": "x"}, "no such file"),
    ({"file_name": "", "text": "x"}, "is not a"),
    ({"file_name": "metadata.jsonl", "text": "x"}, "is not a"),
    ({"file_name": "a\0.png", "text": "x"}, "not a possible file name"),
    ({"file_name": "\ud800.png", "text": "x"}, "not a possible file name"),
    ({"file_name": "x" * 5000 + ".png", "text": "x"}, "not a possible file name"),
    ({"file_name": "\x1b[2J\n.png", "text": "x"}, "no such file"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_LINES, ids=lambda value: str(value)[:40])
def test_a_bad_line_of_metadata_is_refused_by_number(tmp_path: Path, line: object, expected: str):
    folder, outside = tmp_path / "folder", tmp_path / "outside.png"
    folder.mkdir()
    gradient(8, 8).save(outside)
    gradient(8, 8).save(folder / "a.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    if isinstance(line, dict) and line.get("file_name") == "{outside}":
        line = line | {"file_name": str(outside)}
    write_metadata(folder, {"file_name": "a.png", "text": "fine"}, line)
    message = refusal(folder)
    assert "line 2" in message
    assert expected in message
    assert len(message) < 600


@pytest.mark.parametrize("plant", ["picture", "caption", "class", "metadata"])
def test_links_that_leave_the_folder_are_refused(tmp_path: Path, plant: str):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    picture = save(outside, "a.png", gradient(8, 8), "secret")
    write_metadata(outside, {"file_name": "a.png", "text": "x"})
    links: dict[str, Callable[[], None]] = {
        "picture": lambda: (folder / "a.png").symlink_to(picture),
        "caption": lambda: (folder / "a.txt").symlink_to(picture.with_suffix(".txt")),
        "class": lambda: (folder / "cats").symlink_to(outside),
        "metadata": lambda: (folder / "metadata.jsonl").symlink_to(outside / "metadata.jsonl"),
    }
    links[plant]()
    if plant == "picture":
        (folder / "a.txt").write_text("x")
    if plant == "caption":
        gradient(8, 8).save(folder / "a.png")
    assert "leads out of the folder" in refusal(folder)


def test_links_within_the_folder_are_followed_and_circles_refused(tmp_path: Path):
    save(tmp_path, "a.png", gradient(32, 32))
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "b.txt").write_text("the same")
    assert len(open_dataset(str(tmp_path), SIDE)) == 2
    (tmp_path / "c.png").symlink_to("c.png")
    (tmp_path / "c.txt").write_text("x")
    assert refusal(tmp_path)
