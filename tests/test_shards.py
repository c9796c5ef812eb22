"""Tar shards and their index: which samples are found, where, and what training sees of them."""

from __future__ import annotations

import json
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from shard_files import index_of, jpeg, png, sample, tar, write_shards
from small import trainable_model
from train_process import arguments, finish, resuming

from mdm_apple.cli import group
from mdm_apple.config.presets import preset
from mdm_apple.config.strict_json import to_json
from mdm_apple.data.batches import Draws, make_batch
from mdm_apple.data.dataset import DataError
from mdm_apple.data.folder import open_folder
from mdm_apple.data.shards.caption_field import CaptionChoice
from mdm_apple.data.shards.index_shard import index_shard
from mdm_apple.data.shards.open_index import OpenIndex
from mdm_apple.data.shards.pack import pack_shards
from mdm_apple.data.shards.picture_sides import picture_sides
from mdm_apple.data.shards.plans import plan_of
from mdm_apple.data.shards.rows import ROW, Row
from mdm_apple.data.shards.shard_file import ShardFile
from mdm_apple.data.shards.shard_pictures import ShardPictures
from mdm_apple.data.shards.tar import members
from mdm_apple.data.shards.write_index import IndexOptions, write_index
from mdm_apple.errors import MdmError
from mdm_apple.storage.model_folder import load_weights

TXT = CaptionChoice.of("txt")


def mdm(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(group, [*map(str, arguments)])


def rows_of(path: Path, captions: CaptionChoice = TXT, *scores: str) -> list[Row]:
    rows = bytes(index_shard(path, captions, scores).rows)
    return [Row.of(rows[at : at + ROW.size]) for at in range(0, len(rows), ROW.size)]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- tar ----------------------------------------------------------------------------------------

LONG = "a" * 60 + "/" + "b" * 60  # fits a USTAR prefix and name
LONGER = "c" * 150  # does not


@pytest.mark.parametrize("mtime", [0, 1700000000.25])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path: Path, form: int, mtime: float) -> None:
    names = ["0.jpg", f"{LONG}.txt", "empty.txt"]
    if form != tarfile.USTAR_FORMAT:
        names.append(f"{LONGER}.json")
    given = [(name, name.encode() * 300 if name != "empty.txt" else b"") for name in names]
    path = written(tmp_path / "a.tar", tar(given, form, mtime))
    with ShardFile(path) as file:
        found = [(m.name, m.start, m.size, m.ahead) for m in members(file)]
    with tarfile.open(path) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file]
    assert [some[:3] for some in found] == expected
    data = path.read_bytes()
    assert all(data[start:].startswith(ahead) for _, start, _, ahead in found)


def test_folders_and_files_of_systems_are_passed_over(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("./a")
    folder.type = tarfile.DIRTYPE
    given = [(folder, b""), ("./a/._0.jpg", b"x"), ("./a/.DS_Store", b"x"), *sample("./a/0", 0)]
    found = index_shard(written(tmp_path / "a.tar", tar(given)), TXT)
    assert (len(found.rows), dict(found.unopened)) == (ROW.size, {})


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "lossless", "alpha"])
@pytest.mark.parametrize("size", [(1, 1), (300, 17), (16383, 3)])
def test_sides_of_a_picture_are_those_that_pillow_reads(
    tmp_path: Path, form: str, size: tuple[int, int]
) -> None:
    path = tmp_path / "picture"
    mode = "RGBA" if form == "alpha" else "RGB"
    options = {"lossless": form == "lossless"} if form in ("lossless", "alpha") else {}
    kind = form if form in ("JPEG", "PNG") else "WEBP"
    Image.new(mode, size, (200, 10, 30, 40)[: len(mode)]).save(path, kind, **options)
    data = path.read_bytes()
    assert picture_sides(lambda at, count: data[at : at + count]) == size


def test_sides_stand_behind_decoration_of_a_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x010E] = "x" * 30_000
    Image.new("RGB", (30, 20)).save(path, exif=exif, icc_profile=b"p" * 200_000, progressive=True)
    shard = written(tmp_path / "a.tar", tar([("0.jpg", path.read_bytes()), ("0.txt", b"red")]))
    (row,) = rows_of(shard)
    assert (row.width, row.height) == (30, 20)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8" + b"\xff" * 5000, b"GIF89a" + bytes(40), jpeg(0)[:150]]
)
def test_what_is_no_picture_has_no_sides(data: bytes) -> None:
    assert picture_sides(lambda at, count: data[at : at + count]) is None


# --- samples ------------------------------------------------------------------------------------


def test_a_row_leads_to_the_bytes_of_picture_and_caption(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "shards", 1, 5) / "00000.tar"
    data = path.read_bytes()
    for number, row in enumerate(rows_of(path)):
        assert data[row.picture : row.picture + row.picture_bytes] == jpeg(number)
        caption = data[row.caption : row.caption + row.caption_bytes]
        assert caption == f"picture {number}".encode()
        assert (row.width, row.height) == (12, 8)


def test_captions_and_scores_may_stand_in_the_json(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 1, 5)
    folder = index_of(shards, IndexOptions("json.blip", ("pwatermark", "missing")))
    index = OpenIndex(folder)
    assert index.row(3).score == pytest.approx(0.03, abs=1e-4)
    assert np.isnan(index.row(3).second_score)
    assert ShardPictures(index, 8).captions()[4] == "a drawing 4"


def test_unusable_samples_are_counted_by_reason_and_other_kinds_never_opened(
    tmp_path: Path,
) -> None:
    found = [
        *sample("good", 1),
        ("alone.jpg", jpeg(2)),
        ("words.txt", b"no picture"),
        ("empty.jpg", jpeg(2)),
        ("empty.txt", b" \n"),
        ("large.jpg", jpeg(2)),
        ("large.txt", b"x" * 70_000),
        ("latin.jpg", jpeg(2)),
        ("latin.txt", b"\xff\xfe\xfa"),
        ("text.jpg", b"no picture at all"),
        ("text.txt", b"red"),
        ("cut.png", png(0)[:20]),
        ("cut.txt", b"red"),
        ("trap.pkl", b"cos\nsystem\n(S'touch owned'\ntR."),
        ("trap.pth", b"x"),
        ("trap.JPG", jpeg(3)),
        ("trap.txt", b"a trap"),
        ("trap.seg.png", png(3)),
    ]
    shard = index_shard(written(tmp_path / "a.tar", tar(found)), TXT)
    assert len(shard.rows) == 2 * ROW.size
    assert dict(shard.left_out) == {
        "no caption": 1,
        "no picture": 1,
        "an empty caption": 1,
        "a caption that is too large": 1,
        "a caption that is no UTF-8 text": 1,
        "a picture that is no JPEG, PNG or WebP": 2,
    }
    assert dict(shard.unopened) == {"pkl": 1, "pth": 1, "seg.png": 1}


# --- index --------------------------------------------------------------------------------------


def test_an_index_says_what_it_holds(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 3, 4)
    result = mdm("index", shards, "--out", tmp_path / "train.index", "--json", "--quiet")
    assert result.exit_code == 0, result.exception
    said = json.loads(result.stdout)
    assert (said["shards"], said["samples"], said["shards_from"]) == (3, 12, "../shards")
    assert said["left_out"] == said["unopened"] == said["skipped"] == {}


def test_shards_are_a_folder_a_pattern_or_a_list_in_its_own_order(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 3, 2)
    (tmp_path / "list.txt").write_text("shards/00002.tar\nshards/00000.tar\n\n", encoding="utf-8")
    given = {"folder": [shards], "pattern": [shards / "*1.tar"], "list": [tmp_path / "list.txt"]}
    first: dict[str, str] = {}
    for name, some in given.items():
        write_index([*map(str, some)], tmp_path / name)
        first[name] = ShardPictures(OpenIndex(tmp_path / name), 8).captions()[0]
    assert first == {"folder": "picture 0", "pattern": "picture 2", "list": "picture 4"}


def test_shards_and_index_may_move_together(tmp_path: Path) -> None:
    index_of(write_shards(tmp_path / "a" / "shards", 1, 2))
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(ShardPictures(OpenIndex(tmp_path / "b" / "shards.index"), 8).captions()) == 2


def test_equal_shards_give_equal_indexes(tmp_path: Path) -> None:
    for name in "ab":
        index_of(write_shards(tmp_path / name / "shards", 2, 3))
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 6
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )


def test_an_index_is_replaced_only_if_asked_and_only_if_it_is_one(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 1, 2)
    out = index_of(shards)
    before = (out / "index.json").read_bytes()
    with pytest.raises(MdmError, match="add --overwrite"):
        write_index([str(shards)], out)
    write_index([str(shards)], out, IndexOptions("json.blip"), overwrite=True)
    assert (out / "index.json").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    diary = tmp_path / "diary"
    diary.mkdir()
    (diary / "today.txt").write_text("dear diary", encoding="utf-8")
    with pytest.raises(MdmError, match="is not overwritten"):
        write_index([str(shards)], diary, overwrite=True)
    assert (diary / "today.txt").exists()


def test_samples_are_indexed_fast(tmp_path: Path) -> None:
    """At least 12,000 for each second of processor time is promised; a busy machine gives less."""
    picture = jpeg(0, (256, 256), 60)
    found: list[tuple[str, bytes]] = []
    for number in range(2000):
        key = f"{number:09d}"
        values = b'{"caption": "a plain caption of some words", "width": 256, "height": 256}'
        found += [
            (f"{key}.jpg", picture),
            (f"{key}.json", values),
            (f"{key}.txt", b"a plain caption of some words"),
        ]
    path = written(tmp_path / "a.tar", tar(found))
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        index_shard(path, TXT)
        best = max(best, 2000 / (time.process_time() - start))
    print(f"{best:.0f} samples for each second of processor time")
    assert best > 6000


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("side >= 8", range(12)),
        ("side > 8", []),
        ("width == 12 and height == 8", range(12)),
        ("pwatermark < 0.05", range(5)),
        ("pwatermark>=0.05 and pwatermark != 0.07 and side <= 8", [5, 6, 8, 9, 10, 11]),
        ("missing < 1", []),
        ("missing != 1", []),
    ],
)
def test_a_condition_keeps_the_samples_that_fulfil_it(
    tmp_path: Path, where: str, kept: list[int]
) -> None:
    shards = write_shards(tmp_path / "shards", 3, 4)
    options = IndexOptions(scores=("pwatermark", "missing"), where=where)
    if not kept:
        with pytest.raises(DataError, match="12 with numbers that --where excludes"):
            write_index([str(shards)], tmp_path / "index", options)
        return
    note = write_index([str(shards)], tmp_path / "index", options)
    assert note.samples == len(kept)
    assert sum(note.left_out.values()) == 12 - len(kept)
    pictures = ShardPictures(OpenIndex(tmp_path / "index"), 8)
    assert pictures.captions() == [f"picture {number}" for number in kept]
    assert all(pictures.item(n).caption == f"picture {number}" for n, number in enumerate(kept))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("", "joined by and"),
        ("side >= 256 or side < 3", "joined by and"),
        ("__import__('os').system('touch owned')", "joined by and"),
        ("side >= 1e3", "joined by and"),
        ("side >= width", "joined by and"),
        ("side >= 1 and", "joined by and"),
        ("beauty > 3", "no beauty; name a number of the .json with --score"),
    ],
)
def test_a_condition_of_anything_else_is_refused(where: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        IndexOptions(where=where)


# --- packing and training -----------------------------------------------------------------------


def test_packed_pictures_are_those_of_the_folder(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "photos")
    Image.open(pictures / "00.png").save(tmp_path / "photos" / "00.bmp")
    (tmp_path / "photos" / "00.png").unlink()
    Image.open(pictures / "01.png").resize((40, 31)).save(tmp_path / "photos" / "01.webp")
    (tmp_path / "photos" / "01.png").unlink()
    packed = pack_shards(str(tmp_path / "photos"), tmp_path / "shards", samples=5)
    assert (packed.shards, packed.samples, packed.empty_captions) == (4, 16, 0)
    ours = ShardPictures(OpenIndex(index_of(tmp_path / "shards")), 8)
    theirs = open_folder(tmp_path / "photos", 8)
    assert ours.captions() == theirs.captions()
    for index in range(16):
        ours_item, theirs_item = ours.item(index), theirs.item(index)
        assert (ours_item.image == theirs_item.image).all()
        assert ours_item.scale == theirs_item.scale


def test_equal_pictures_give_equal_shards(pictures: Path, tmp_path: Path) -> None:
    for name in "ab":
        pack_shards(str(pictures), tmp_path / name)
    assert (tmp_path / "a" / "000000.tar").read_bytes() == (
        tmp_path / "b" / "000000.tar"
    ).read_bytes()


def train(data: Path, out: Path, *more: str) -> Path:
    config = out.with_suffix(".json")
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    common = ("--steps", "5", "--batch-size", "4", "--quiet", "--config", config)
    result = mdm("train", *common, "--data", data, "--out", out, *more)
    assert result.exit_code == 0, result.exception
    return out


def assert_equal_weights(ours: Path, theirs: Path) -> None:
    for which in ("model", "ema", "text_encoder"):
        expected = load_weights(theirs, which)  # type: ignore[arg-type]
        found = load_weights(ours, which)  # type: ignore[arg-type]
        assert all((found[name] == value).all() for name, value in expected.items())


@pytest.fixture
def packed_index(pictures: Path, tmp_path: Path) -> Path:
    pack_shards(str(pictures), tmp_path / "shards", samples=6)
    return index_of(tmp_path / "shards")


@pytest.mark.parametrize("share", ["0", "0.2"])
def test_shards_in_the_order_of_a_folder_train_to_its_weights_bit_for_bit(
    pictures: Path, packed_index: Path, tmp_path: Path, share: str
) -> None:
    more = ("--validation-share", share)
    theirs = train(pictures, tmp_path / "theirs", *more)
    ours = train(packed_index, tmp_path / "ours", *more, "--order", "folder")
    assert_equal_weights(ours, theirs)
    captions = [(run / "captions.txt").read_text(encoding="utf-8") for run in (ours, theirs)]
    assert captions[0] == captions[1]


def test_another_order_trains_to_other_weights(
    pictures: Path, packed_index: Path, tmp_path: Path
) -> None:
    theirs = train(pictures, tmp_path / "theirs")
    for order in ("lanes", "uniform"):
        ours = train(packed_index, tmp_path / order, "--order", order)
        with pytest.raises(AssertionError):
            assert_equal_weights(ours, theirs)


@pytest.mark.parametrize("order", ["lanes", "uniform", "folder"])
def test_a_resumed_run_on_shards_ends_where_an_undisturbed_one_does(
    packed_index: Path, tmp_path: Path, order: str
) -> None:
    held = ("--validation-share", "0.3")
    whole = train(packed_index, tmp_path / "whole", "--order", order, *held)
    parted = train(packed_index, tmp_path / "parted", "--order", order, *held, "--steps", "2")
    noted = json.loads((parted / "training.json").read_text(encoding="utf-8"))
    assert ("lanes" in noted) == (order == "lanes")
    result = mdm("train", "--resume", "--out", parted, "--steps", "5", "--quiet")
    assert result.exit_code == 0, result.exception
    assert_equal_weights(parted, whole)


def test_a_resumed_run_keeps_its_order_and_its_index(packed_index: Path, tmp_path: Path) -> None:
    run = train(packed_index, tmp_path / "run", "--order", "uniform")
    again = mdm("train", "--resume", "--out", run, "--steps", "6", "--order", "lanes", "--quiet")
    assert "order: the run in" in str(again.exception)
    index_of_others = index_of(write_shards(tmp_path / "others", 2, 8))
    again = mdm("train", "--resume", "--out", run, "--steps", "6", "--data", index_of_others)
    assert "was trained on other pictures" in str(again.exception)


def test_a_shard_that_changed_since_it_was_indexed_is_refused(
    packed_index: Path, tmp_path: Path
) -> None:
    shard = tmp_path / "shards" / "000001.tar"
    shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(DataError, match=r"000001.tar: has \d+ bytes, not \d+, so it changed"):
        ShardPictures(OpenIndex(packed_index), 8).item(7)
    shard.unlink()
    with pytest.raises(DataError, match=r"000001.tar: cannot be read; .* make the index anew"):
        ShardPictures(OpenIndex(packed_index), 8).item(7)


@pytest.mark.slow
def test_twemoji_in_shards_train_to_the_weights_of_twemoji(tmp_path: Path) -> None:
    side = trainable_model().side
    pack_shards("twemoji", tmp_path / "shards", side=side)
    theirs = train(Path("twemoji"), tmp_path / "theirs")
    ours = train(index_of(tmp_path / "shards"), tmp_path / "ours", "--order", "folder")
    assert_equal_weights(ours, theirs)


# --- several captions ---------------------------------------------------------------------------


def test_captions_are_drawn_by_their_shares_from_the_rows_own_numbers(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 2, 5)
    index = OpenIndex(index_of(shards, IndexOptions("txt:1, json.blip:3")))
    assert index.note.captions == "txt:0.25,json.blip:0.75"
    pictures = ShardPictures(index, 8)
    assert pictures.captions()[:4] == ["picture 0", "a drawing 0", "picture 1", "a drawing 1"]
    plan = plan_of("lanes", index.starts, 10, 0, np.empty(0, np.int64))
    draws = Draws(3, (8,), preset("tiny").diffusion)

    def captions(rows: list[int]) -> list[str]:
        found: list[str] = []
        for step in range(60):
            chosen = plan.indices(step, rows)
            found += make_batch(pictures, chosen, draws, step, rows).captions
        return found

    whole = captions([*range(10)])
    assert whole[3::10] == captions([3])
    share = sum(caption.startswith("a drawing") for caption in whole) / len(whole)
    assert share == pytest.approx(0.75, abs=0.06)
    assert pictures.item(7).caption == "picture 7"


def test_a_sample_with_one_of_two_captions_has_that_one(tmp_path: Path) -> None:
    found = [
        *[("a.jpg", jpeg(0)), ("a.txt", b"only words")],
        *[("b.jpg", jpeg(1)), ("b.json", b'{"blip": "only json"}'), ("b.txt", b" ")],
        *[("c.jpg", jpeg(2)), ("c.json", b'{"blip": 3}')],
        *[("d.jpg", jpeg(3)), ("d.json", b'["blip"]')],
    ]
    shards = tmp_path / "shards"
    shards.mkdir()
    written(shards / "a.tar", tar(found))
    index = OpenIndex(index_of(shards, IndexOptions("txt:0.5,json.blip:0.5", where="side >= 8")))
    assert index.note.left_out == {"no caption": 2}
    pictures = ShardPictures(index, 8)
    random = np.random.Generator(np.random.Philox(0))
    drawn = {pictures.drawn(number, random).caption for number in (0, 1) for _ in range(9)}
    assert drawn == {"only words", "only json"}
    assert pictures.captions() == ["only words", "only json"]


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        ("html", "expected txt or json.FIELD"),
        ("json.", "expected txt or json.FIELD"),
        ("", "expected txt or json.FIELD"),
        ("txt:0", "shares above 0"),
        ("txt:1,json.a", "shares above 0"),
        ("txt:nan,json.a:1", "shares above 0"),
        ("txt:-1,json.a:2", "shares above 0"),
        ("txt:1e3,json.a:2", "shares above 0"),
        ("txt:1,txt:2", "twice"),
        (",".join(f"json.{n}:1" for n in range(9)), "up to 8"),
    ],
)
def test_a_choice_of_captions_that_makes_no_sense_is_refused(captions: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        IndexOptions(captions)


@pytest.mark.slow
def test_two_processes_on_shards_resume_to_where_undisturbed_ones_end(
    packed_index: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for asked in (
        arguments(config, packed_index, whole, 6),
        arguments(config, packed_index, parted, 3),
        resuming(arguments(config, packed_index, parted, 6)),
    ):
        done = finish(asked, launcher)
        assert done.returncode == 0, done.stderr
    assert_equal_weights(parted, whole)


# --- what the commands say ----------------------------------------------------------------------


def test_the_commands_lead_from_a_folder_to_an_index(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "photos")
    (tmp_path / "photos" / "02.txt").write_text("", encoding="utf-8")
    (tmp_path / "photos" / "03.png").write_bytes(b"no picture")
    shards, index = tmp_path / "shards", tmp_path / "train.index"
    asked = ("shards", "pack", tmp_path / "photos", "--out", shards, "--quiet", "--samples", 6)
    assert "03.png: cannot be read" in str(mdm(*asked).exception)
    assert not shards.exists()
    packed = mdm(*asked, "--skip-bad")
    assert packed.exit_code == 0, packed.exception
    assert packed.stdout.startswith(f"{shards}: 15 pictures in 3 shards.\n1 with an empty caption")
    assert "1 bad picture left out:\n" in packed.stdout
    assert "add --overwrite" in str(mdm(*asked, "--skip-bad").exception)
    again = mdm(*asked, "--skip-bad", "--overwrite", "--json")
    assert json.loads(again.stdout)["samples"] == 15
    indexed = mdm("index", shards, "--out", index, "--quiet")
    assert indexed.stdout == (
        f"{index}: 14 samples in 3 shards, with captions from txt.\n"
        "1 sample left out, with (an empty caption: 1).\n"
    )
