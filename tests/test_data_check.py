"""`mdm data check`: every picture that training would refuse, drop or change is named."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from small import trainable_model

import mdm_apple as mdm
from mdm_apple.cli import group
from mdm_apple.config.strict_json import to_json
from mdm_apple.data.check import check_folder
from mdm_apple.data.dataset import DataError
from mdm_apple.data.open import open_dataset
from mdm_apple.data.sheet import GAP, LINE, LINES, sheet, spread
from mdm_apple.errors import MdmError
from mdm_apple.text.tokenizer import train_tokenizer

CASES = Path(__file__).parents[2] / "shared" / "cases"
SIDE = 16


def noise(width: int = 20, height: int = 20, seed: int = 0) -> Image.Image:
    random = np.random.RandomState(seed)
    return Image.fromarray(random.randint(0, 256, (height, width, 3), dtype=np.uint8))


def save(
    folder: Path, name: str, image: Image.Image, caption: str | None = "a thing", **how: Any
) -> Path:
    path = folder / name
    image.save(path, **how)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["data", "check", *map(str, arguments), "--quiet"])


def checked(*arguments: object) -> dict[str, Any]:
    """The JSON of a check; exit 1 and a sentence if training would not run through."""
    result = call(*arguments, "--json")
    found = json.loads(result.stdout)
    if found["ready"]:
        assert result.exit_code == 0, result.exception
    else:
        assert isinstance(result.exception, MdmError)
        assert result.exit_code == 1
    return found


FINDINGS = (
    "bad",
    "missing",
    "without_caption",
    "captions_without_picture",
    "other_files",
    "empty_captions",
    "too_small",
    "cropped",
    "duplicates",
    "gray",
    "transparent",
    "animated",
    "remarks",
)


@pytest.fixture
def motley(tmp_path: Path) -> Path:
    """One picture of every kind that a check names."""
    folder = tmp_path / "motley"
    folder.mkdir()
    for number in range(3):
        save(folder, f"{number}.png", noise(seed=number), f"a fine thing {number}")
    whole = save(folder, "cut.jpg", noise(60, 60, 10)).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    save(folder, "void.png", noise()).write_bytes(b"")
    save(folder, "bare.png", noise(seed=11), None)
    (folder / "lone.txt").write_text("nothing to see")
    (folder / "notes.md").write_text("mine")
    save(folder, "empty.png", noise(seed=12), " \n")
    save(folder, "small.png", noise(9, 12, 13))
    save(folder, "wide.png", noise(60, 20, 14))
    save(folder, "half.png", noise(40, 20, 15))  # loses just a half
    save(folder, "same.bmp", noise(seed=1), "with another caption")
    save(folder, "gray.png", noise(seed=16).convert("L"))
    clear = noise(seed=17)
    clear.putalpha(128)
    save(folder, "clear.png", clear)
    opaque = noise(seed=18)
    opaque.putalpha(255)
    save(folder, "opaque.png", opaque)
    frames = [noise(seed=19), noise(seed=20)]
    save(folder, "moves.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    (folder / "latin.txt").write_bytes("Übermaß".encode("latin-1"))
    save(folder, "latin.png", noise(seed=21), None)
    return folder


def test_every_kind_is_named(motley: Path) -> None:
    found = checked(motley, "--size", SIDE)
    assert sorted(found["bad"]) == ["cut.jpg", "latin.png", "void.png"]
    assert "image file is truncated" in found["bad"]["cut.jpg"]
    assert "expected UTF-8" in found["bad"]["latin.png"]
    assert found["missing"] == {}
    assert found["without_caption"] == ["bare.png"]
    assert found["captions_without_picture"] == ["lone.txt"]
    assert found["other_files"] == ["notes.md"]
    assert found["empty_captions"] == ["empty.png"]
    assert found["too_small"] == {"small.png": 9}
    assert found["cropped"] == {"wide.png": pytest.approx(2 / 3)}
    assert found["duplicates"] == [["1.png", "same.bmp"]]
    assert found["gray"] == ["gray.png"]
    assert found["transparent"] == ["clear.png"]
    assert found["animated"] == ["moves.webp"]
    assert (found["pictures"], found["used"]) == (15, 12)
    assert found["captions_from"] == "a caption file for each picture"
    assert found["ready"] is False


def test_the_text_names_them_too_and_the_sentence_says_what_to_do(motley: Path) -> None:
    result = call(motley)
    assert "training sees 12 of 15 captioned pictures" in result.stdout
    for part in ("3 bad:\n  cut.jpg: cannot be read", "1.png = same.bmp", "wide.png: 67% lost"):
        assert part in result.stdout
    assert "small.png" not in result.stdout  # the size is not known
    assert str(result.exception) == (
        f"{motley}: 3 of 15 pictures are bad; repair or remove them, or train with --skip-bad."
    )


def test_training_refuses_what_the_check_calls_bad_and_reads_the_rest(motley: Path) -> None:
    (motley / "latin.txt").unlink()
    found = check_folder(motley, SIDE)
    opened = open_dataset(str(motley), SIDE, skip_bad=True)
    read = dict[str, bool]()
    for index, file in enumerate(opened.files):
        try:
            read[file.name] = bool(opened.item(index).image.any())
        except DataError:
            read[file.name] = False
    bad = {name for name, fine in read.items() if not fine} | set(opened.left_out)
    assert bad == set(found.bad) == {"cut.jpg", "void.png"}


def test_one_of_a_kind_is_not_many(tmp_path: Path) -> None:
    save(tmp_path, "0.png", noise(60, 20))
    save(tmp_path, "bare.png", noise(seed=1), None)
    (tmp_path / "x.txt").write_text("x")
    text = call(tmp_path).stdout
    for line in (
        "training sees 1 of 1 captioned picture,",
        "1 picture without a caption, not used:",
        "1 caption without a picture, not used:",
        "1 loses more than half to the square:",
    ):
        assert line in text
    (tmp_path / "0.png").write_bytes(b"")
    assert "the only picture cannot be used" in str(call(tmp_path).exception)


def test_a_bad_row_of_a_table_is_a_bad_picture(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path, f"{number}.png", noise(seed=number), None)
    rows = [{"file_name": "0.png", "text": None}, {"file_name": "1.png", "text": "a thing"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = checked(tmp_path)
    assert "line 1: expected the keys" in found["bad"]["0.png"]
    assert (found["used"], found["without_caption"]) == (1, [])


def test_a_fine_folder_has_no_findings(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path, f"{number}.png", noise(seed=number), f"thing {number}")
    found = checked(tmp_path, "--size", SIDE)
    assert found["ready"] is True
    assert not any(found[name] for name in FINDINGS)
    assert found["distinct_captions"] == 3


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
def test_the_case_of_a_late_truncation_is_bad(tmp_path: Path) -> None:
    found = checked(CASES / "late_truncated")
    assert "truncated" in found["bad"]["photo.jpg"]
    for number in range(2):
        save(tmp_path, f"{number}.png", noise(seed=number))
    for path in (CASES / "late_truncated").iterdir():
        shutil.copy(path, tmp_path)
    found = checked(tmp_path)
    assert (list(found["bad"]), found["used"]) == (["photo.jpg"], 2)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_damaged_file_is_bad_exactly_if_training_cannot_read_it(
    tmp_path: Path, suffix: str
) -> None:
    """The check decodes at full size, and training decodes a large JPEG smaller."""
    whole = save(tmp_path, f"whole.{suffix}", noise(300, 200)).read_bytes()
    random = np.random.RandomState(1)
    for number in range(30):
        damaged = bytearray(whole)
        if number % 2:
            del damaged[random.randint(len(whole)) :]
        for place in random.randint(0, max(1, len(damaged)), 6):
            damaged[place : place + 1] = bytes([random.randint(256)])
        (tmp_path / f"{number}.{suffix}").write_bytes(damaged)
        (tmp_path / f"{number}.txt").write_text("a thing")
    opened = open_dataset(str(tmp_path), SIDE, skip_bad=True)
    bad = set(opened.left_out)
    for index, file in enumerate(opened.files):
        try:
            opened.item(index)
        except DataError:
            bad.add(file.name)
    assert set(check_folder(tmp_path, SIDE).bad) == bad
    assert 5 < len(bad) < 31


def test_equal_pixels_are_found_in_other_formats_and_turned(tmp_path: Path) -> None:
    image = noise(48, 32)
    save(tmp_path, "a.png", image)
    save(tmp_path, "b.webp", image, lossless=True)
    save(tmp_path, "c.jpg", noise(400, 300, 1), quality=90)
    with Image.open(tmp_path / "c.jpg") as photo:  # training decodes the JPEG smaller
        save(tmp_path, "d.png", photo.copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    save(tmp_path, "e.png", image.rotate(90, expand=True), exif=exif)
    save(tmp_path, "f.png", image.crop((0, 0, 48, 31)))
    changed = image.copy()
    changed.putpixel((40, 30), (1, 2, 3))  # outside the square
    save(tmp_path, "g.png", changed)
    assert check_folder(tmp_path, SIDE).duplicates == [
        ["a.png", "b.webp", "e.png"],
        ["c.jpg", "d.png"],
    ]


def test_pictures_of_a_table_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    save(tmp_path, "0.png", noise(), None)
    names = ("0.png", "gone.png", "../out.png", "away.png")
    rows = [json.dumps({"file_name": name, "text": "a thing"}) for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    found = checked(tmp_path)
    assert sorted(found["missing"]) == ["../out.png", "away.png", "gone.png"]
    assert "line 2" in found["missing"]["gone.png"]
    assert "leads out of the folder" in found["missing"]["../out.png"]
    assert found["captions_from"] == "the table metadata.jsonl"
    with pytest.raises(
        DataError, match=r"gone\.png.*; 2 more cannot be used, and `mdm data check`"
    ):
        open_dataset(str(tmp_path), SIDE)
    assert len(open_dataset(str(tmp_path), SIDE, skip_bad=True)) == 1


def test_a_folder_that_training_refuses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    for place in (tmp_path / "none", tmp_path, tmp_path / "cats"):
        result = call(place)
        assert isinstance(result.exception, MdmError)
        assert result.stdout == ""
    save(tmp_path / "cats", "0.png", noise(), None)
    assert "unclear whether 'cats' is the caption" in str(call(tmp_path).exception)


# --- the sheet ----------------------------------------------------------------------------------


def test_the_sheet_shows_what_training_sees(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(30):
        save(data, f"{number:02d}.png", noise(40, 30, number), f"thing {number}")
    out = tmp_path / "sheet.png"
    found = checked(data, "--size", SIDE, "--out", out)
    names = [entry["file"] for entry in found["shown"]]
    assert (len(names), names[0], names[-1]) == (12, "00.png", "29.png")
    assert names == [entry["file"] for entry in checked(data)["shown"]]
    dataset = open_dataset(str(data), SIDE)
    with Image.open(out) as picture:
        drawn = np.asarray(picture)
    side = 192
    for place, name in enumerate(names):
        image = dataset.item(int(name[:2])).image
        top = GAP + place // 4 * (side + GAP + LINES * LINE)
        left = GAP + place % 4 * (side + GAP)
        shown = drawn[top : top + side, left : left + side]
        np.testing.assert_array_equal(shown[6::12, 6::12], image)
        below = drawn[top + side : top + side + LINE, left : left + side]
        assert (below < 128).any(), "a caption stands below"
    assert call(data, "--out", out).exit_code == 1  # nothing is overwritten
    assert call(data, "--out", out, "--overwrite").exit_code == 0


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (12, 12), (13, 12), (1000, 12)])
def test_up_to_twelve_are_spread_over_the_folder(count: int, shown: int) -> None:
    some = spread([10 * k for k in range(count)])
    assert (len(set(some)), some[0], some[-1]) == (shown, 0, 10 * (count - 1))


@pytest.mark.parametrize("caption", ["", "Übermaß 猫", "word " * 500, "x" * 3000, "a\u200db"])
def test_any_caption_fits_on_the_sheet(tmp_path: Path, caption: str) -> None:
    save(tmp_path, "0.png", noise(), caption)
    assert sheet(open_dataset(str(tmp_path), 600), [0]).shape == (512 + 2 * GAP + 48, 536, 3)


# --- with a model -------------------------------------------------------------------------------


def test_captions_are_counted_as_the_model_reads_them(tmp_path: Path) -> None:
    config = trainable_model()
    assert config.text is not None
    assert config.text.encoder is not None
    (tmp_path / "config.json").write_text(to_json(config))
    data = tmp_path / "data"
    data.mkdir()
    captions = ["red", "blue", "red and blue and green and every other color there is"]
    for number, caption in enumerate(captions):
        save(data, f"{number}.png", noise(seed=number), caption)
    found = checked(data, "--config", tmp_path / "config.json")
    tokenizer = train_tokenizer(
        captions, config.text.encoder.vocab_size, lowercase=config.text.lowercase
    )
    lengths = [len(tokenizer.tokens(caption, 1000)) for caption in captions]
    limit = config.text.max_tokens
    assert found["side"] == config.side
    assert found["tokens"]["longest"] == max(lengths) > limit
    cut = [c for c, length in zip(captions, lengths, strict=True) if length > limit]
    assert found["tokens"]["cut"] == cut
    assert cut == [c for c in captions if tokenizer.unread(c, limit).cut]


def test_a_model_brings_its_size_and_its_tokenizer(tmp_path: Path) -> None:
    save(tmp_path, "0.png", noise(), "red heart")
    found = checked(tmp_path, "--model", "box:emoji")
    assert (found["side"], found["too_small"]) == (64, {"0.png": 20})
    assert 2 <= found["tokens"]["longest"] <= found["tokens"]["limit"] == 16
    found = checked(tmp_path, "--preset", "mdm64")
    assert (found["side"], found["tokens"]) == (64, None)
    assert "no caption was counted" in found["remarks"][-1]
    assert "leave one of them out" in str(call(tmp_path, "--preset", "tiny", "--size", 8).exception)


def test_some_captions_may_be_chosen(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path, f"{number}.png", noise(seed=number), "odd" if number % 2 else "even")
    chosen = tmp_path.with_suffix(".list")
    chosen.write_text("odd\n")
    found = checked(tmp_path, "--captions", chosen)
    assert [entry["file"] for entry in found["shown"]] == ["1.png", "3.png"]
    chosen.write_text("none\n")
    assert "no picture has the caption 'none'" in str(
        call(tmp_path, "--captions", chosen).exception
    )


def test_python_asks_the_same(motley: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = mdm.check_data(motley, side=SIDE, progress=lambda *done: seen.append(done))
    assert len(found.good) == 12
    assert seen == [(k, 13) for k in range(1, 14)]
    with pytest.raises(MdmError, match="side: expected 1 to"):
        mdm.check_data(motley, side=0)


# --- hostile folders ----------------------------------------------------------------------------


def test_a_picture_of_too_many_pixels_is_never_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    (tmp_path / "bomb.txt").write_text("boom")
    assert "million pixels" in checked(tmp_path)["bad"]["bomb.png"]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    save(tmp_path, "secret.png", noise())
    save(data, "0.png", noise())
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    (data / "link.txt").write_text("a secret")
    found = checked(data, "--out", tmp_path / "sheet.png")
    assert "leads out of the folder" in found["bad"]["link.png"]
    assert [entry["file"] for entry in found["shown"]] == ["0.png"]


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a\u202eb", "\udcff"])
def test_nothing_reaches_the_terminal_that_could_steer_it(tmp_path: Path, name: str) -> None:
    save(tmp_path, "0.png", noise(), "red \x1b[31mheart\x07 \x9b2J")
    shutil.copy(tmp_path / "0.png", tmp_path / f"{name}.png")
    shutil.copy(tmp_path / "0.txt", tmp_path / f"{name}.txt")
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "1.txt").write_text("x")
    out = tmp_path.with_suffix(".png")
    for line in call(tmp_path, "--out", out).stdout.splitlines():
        assert line.isprintable(), line
    found = checked(tmp_path, "--out", out, "--overwrite")
    assert sorted(entry["file"] for entry in found["shown"]) == ["0.png", f"{name}.png"]
    assert call(tmp_path, "--json").stdout[:-1].isprintable()


def test_a_long_list_is_cut_in_the_text_alone(tmp_path: Path) -> None:
    save(tmp_path, "0.png", noise())
    for number in range(1, 26):
        (tmp_path / f"{number}.png").write_bytes(b"x")
        (tmp_path / f"{number}.txt").write_text("x")
    text = call(tmp_path).stdout
    assert text.count("cannot be read") == 10
    assert "and 15 more (--json lists all)" in text
    assert len(checked(tmp_path)["bad"]) == 25
