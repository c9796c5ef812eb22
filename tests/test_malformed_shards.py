"""Hostile and damaged shards: each is refused by name, byte and reason; nothing else happens."""

from __future__ import annotations

import os
import re
import resource
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from malformed_shards import BLOCK, CASES, END, GOOD, TRAP, Hostile, header
from shard_files import index_of, jpeg, sample, tar, write_shards
from small import trainable_model
from train_process import arguments, finish, logged

from mdm_apple.cli import group
from mdm_apple.config.presets import preset
from mdm_apple.config.strict_json import to_json
from mdm_apple.data.batches import Draws, make_batch
from mdm_apple.data.dataset import BadPictureError, DataError
from mdm_apple.data.shards.caption_field import CaptionChoice
from mdm_apple.data.shards.index_files import rows_path
from mdm_apple.data.shards.index_shard import index_shard
from mdm_apple.data.shards.open_index import OpenIndex
from mdm_apple.data.shards.plans import plan_of
from mdm_apple.data.shards.rows import ROW, Row
from mdm_apple.data.shards.shard_file import BadShardError
from mdm_apple.data.shards.shard_pictures import ShardPictures
from mdm_apple.data.shards.write_index import IndexOptions, write_index
from mdm_apple.errors import MdmError

MOST = 64 << 20  # bytes of memory
TXT = CaptionChoice.of("txt")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_hostile_shard_is_refused_by_name_and_byte(
    case: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shard = tmp_path / "shards" / "00007.tar"
    shard.parent.mkdir()
    shard.write_bytes(case.data)
    before = contents(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(BadShardError) as refused:
            write_index(["shards"], tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sentence = str(refused.value)
    assert case.says in sentence
    assert f"00007.tar: byte {refused.value.byte}: " in sentence
    if case.at >= 0:
        assert refused.value.byte == case.at
    assert sentence.isprintable()
    assert len(sentence) < 600
    assert peak < MOST
    assert contents(tmp_path) == before


def test_there_are_a_hundred_of_them() -> None:
    assert len({case.data for case in CASES}) >= 100


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_they_are_made_from_is_accepted(tmp_path: Path, form: int) -> None:
    """The twin: refusing all would pass the tests above."""
    for number, data in enumerate((GOOD + END, tar(sample("a", 0), form))):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data)
        assert len(index_shard(path, TXT).rows) == ROW.size


def test_the_command_says_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 2, 3)
    bad = shards / "00001.tar"
    bad.write_bytes(bad.read_bytes()[:3000])
    result = CliRunner().invoke(group, ["index", str(shards), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, MdmError)
    assert re.search(r"00001\.tar: byte \d+: the ", str(result.exception))
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def refusal_or_rows(path: Path) -> tuple[BadShardError | None, bytes]:
    try:
        return None, bytes(index_shard(path, TXT).rows)
    except BadShardError as error:
        return error, b""


@pytest.mark.parametrize("seed", range(6))
def test_a_tar_file_with_any_damage_is_read_within_its_bounds_or_refused(
    tmp_path: Path, seed: int
) -> None:
    random = np.random.RandomState(seed)
    sound = tar([*sample("a", 0), *sample("b/c", 1), ("d.pkl", TRAP)])
    path, refused = tmp_path / "a.tar", 0
    for _ in range(150):
        data = bytearray(sound)
        for _ in range(random.randint(1, 4)):
            at = int(random.randint(len(data)))
            what = random.randint(4)
            if what == 0:
                data[at] = random.randint(256)
            elif what == 1:
                data[at:at] = random.bytes(int(random.choice([1, 512])))
            elif what == 2:
                del data[at : at + int(random.choice([1, 512, 5000]))]
            else:
                block = at - at % BLOCK
                data[block : block + BLOCK] = header(b"e.jpg", int(random.randint(1 << 20)))
        path.write_bytes(data)
        error, rows = refusal_or_rows(path)
        refused += error is not None
        assert error is None or 0 <= error.byte <= len(data)
        for at in range(0, len(rows), ROW.size):
            assert Row.of(rows[at : at + ROW.size]).lies_within(len(data))
    assert 50 < refused < 150


def test_a_pickle_in_a_sample_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tar").write_bytes(
        tar([*sample("0", 0), ("0.pkl", TRAP), ("0.pth", TRAP), ("0.npy", TRAP)])
    )
    write_index(["a.tar"], tmp_path / "index")
    pictures = ShardPictures(OpenIndex(tmp_path / "index"), 8)
    assert pictures.item(0).caption == "picture 0"
    assert pictures.index.note.unopened == {"pkl": 1, "pth": 1, "npy": 1}
    assert not (tmp_path / "owned").exists()


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "list.txt").write_text("a.tar", encoding="utf-8")
    with pytest.raises(DataError, match="is no file"):
        write_index([str(tmp_path / "list.txt")], tmp_path / "out")


@pytest.mark.slow
def test_a_shard_of_too_many_samples_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for number in range((1 << 18) + 1):
            file.write(header(b"%09d.jpg" % number))
        file.write(END)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadShardError, match="more than 262144 samples"):
        index_shard(path, TXT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST >> 10


# --- what may be left out -----------------------------------------------------------------------


def test_bad_shards_are_skipped_up_to_a_number_and_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 4, 3)
    for name in ("00001", "00003"):
        bad = shards / f"{name}.tar"
        bad.write_bytes(bad.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"00003.tar: byte \d+: .* bad shard number 2, more than"):
        write_index([str(shards)], tmp_path / "few", IndexOptions(skip_bad_shards=1))
    note = write_index([str(shards)], tmp_path / "both", IndexOptions(skip_bad_shards=2))
    assert (note.shards, note.samples) == (2, 6)
    assert list(note.skipped) == ["00001.tar", "00003.tar"]
    assert all(re.match(r"byte \d+: ", reason) for reason in note.skipped.values())
    pictures = ShardPictures(OpenIndex(tmp_path / "both"), 8)
    assert pictures.captions()[3] == "picture 6"
    assert "shards that were bad and are left out: 00001.tar, 00003.tar." in pictures.warnings
    write_index([str(shards / "*0.tar"), str(shards / "*2.tar")], tmp_path / "sound")
    alone = ShardPictures(OpenIndex(tmp_path / "sound"), 8)
    assert alone.fingerprint == pictures.fingerprint  # the pictures are the same


def spoil(shards: Path, number: int) -> None:
    """Damage the pixels of one picture, behind its header."""
    data, picture = (shards / "00000.tar").read_bytes(), jpeg(number)
    at = data.index(picture)
    spoiled = picture[:200] + bytes(len(picture) - 200)
    (shards / "00000.tar").write_bytes(data[:at] + spoiled + data[at + len(picture) :])


DRAWS = Draws(3, (16, 8), preset("tiny").diffusion)


@pytest.fixture
def with_bad(tmp_path: Path) -> Path:
    shards = write_shards(tmp_path / "shards", 2, 12)
    spoil(shards, 5)
    return index_of(shards)


def test_a_picture_that_does_not_decode_is_refused_with_shard_and_key(with_bad: Path) -> None:
    pictures = ShardPictures(OpenIndex(with_bad), 16)
    with pytest.raises(BadPictureError, match=r"00000\.tar 000000005\.jpg: cannot be read as"):
        pictures.item(5)


@pytest.mark.parametrize("order", ["lanes", "uniform"])
def test_a_bad_picture_is_replaced_alike_on_any_number_of_processes(
    with_bad: Path, order: str
) -> None:
    def images(world: int) -> np.ndarray:
        found = np.empty((3, 8, 3, 16, 16), np.float32)
        for rank in range(world):
            pictures = ShardPictures(OpenIndex(with_bad), 16, "replace")
            plan = plan_of(order, pictures.index.starts, 8, 0, np.empty(0, np.int64))  # type: ignore[arg-type]
            rows = np.arange(rank, 8, world)
            for step in range(3):
                batch = make_batch(pictures, plan.indices(step, rows), DRAWS, step, rows)
                found[step, rows] = batch.images
        return found

    one = images(1)
    assert all((images(world) == one).all() for world in (2, 4, 8))
    sound = make_batch(
        ShardPictures(OpenIndex(with_bad), 16), [n for n in range(24) if n != 5], DRAWS, 0
    )
    known = {image.tobytes() for image in sound.images}
    assert {image.tobytes() for image in one.reshape(24, 3, 16, 16)} <= known


def test_replaced_pictures_are_counted_and_named(with_bad: Path) -> None:
    pictures = ShardPictures(OpenIndex(with_bad), 16, "replace")
    random = np.random.Generator(np.random.Philox(0))
    pictures.drawn(5, random)
    (sentence,) = pictures.replacements()
    assert sentence.startswith("pictures: 1 of 1 drawn were bad")
    assert "000000005.jpg" in sentence


def test_too_many_bad_pictures_end_a_run(with_bad: Path) -> None:
    pictures = ShardPictures(OpenIndex(with_bad), 16, "replace")
    random = np.random.Generator(np.random.Philox(0))
    for _ in range(3):
        pictures.drawn(5, random)
    with pytest.raises(BadPictureError, match=r"4 of 4 pictures drawn so far are bad"):
        pictures.drawn(5, random)


def test_two_processes_replace_a_bad_picture_as_one_does(with_bad: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    losses: list[dict[int, float]] = []
    for name, how in (("one", ()), ("two", launcher)):
        asked = arguments(config, with_bad, tmp_path / name, 8, "--bad-pictures", "replace")
        ended = finish([word for word in asked if word != "--quiet"], how)
        assert ended.returncode == 0, ended.stderr
        losses.append(logged(tmp_path / name))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_bad_picture_in_a_run_says_what_to_do(with_bad: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    asked = arguments(config, with_bad, tmp_path / "run", 8)
    result = CliRunner().invoke(group, asked)
    sentence = str(result.exception)
    assert "000000005.jpg: cannot be read" in sentence
    assert "take --bad-pictures replace, and go" in sentence or "replace, and start" in sentence
    assert "mdm data check" not in sentence


# --- a damaged index ----------------------------------------------------------------------------


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    folder = index_of(write_shards(tmp_path / "shards", 2, 3))
    note = (folder / "index.json").read_bytes()
    table = (folder / "table.safetensors").read_bytes()
    spoiled_files = {
        "index.json": [
            *(b"", b"{}", note[: len(note) // 2], note.replace(b'"samples": 6', b'"samples": 7')),
            *(note.replace(b'"shards": 2', b'"shards": 3'), note.replace(b"1,", b"2,", 1)),
        ],
        "table.safetensors": [b"", table[:-1], table + b"\0", table[:-1] + b"\0"],
    }
    for name, some in spoiled_files.items():
        sound = (folder / name).read_bytes()
        for spoiled in some:
            (folder / name).write_bytes(spoiled)
            with pytest.raises(MdmError):
                OpenIndex(folder)
        (folder / name).write_bytes(sound)
    rows = rows_path(folder, 1)
    sound = rows.read_bytes()
    for spoiled in (sound[:-1], sound + b"\0", sound[:-32] + bytes(32)):
        rows.write_bytes(spoiled)
        with pytest.raises(DataError, match=r"0000001\.safetensors: the index is damaged"):
            ShardPictures(OpenIndex(folder), 8).item(4)
    rows.write_bytes(sound)
    assert ShardPictures(OpenIndex(folder), 8).item(4).caption == "picture 4"


@pytest.mark.parametrize("data", ["--order", "--bad-pictures"])
def test_options_of_an_index_are_refused_for_a_folder(
    pictures: Path, tmp_path: Path, data: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    value = "lanes" if data == "--order" else "replace"
    asked = arguments(config, pictures, tmp_path / "run", 2, data, value)
    result = CliRunner().invoke(group, asked)
    assert "applies to an index of shards" in str(result.exception)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--skip-bad",), "take --bad-pictures replace"),
        (("--background", "color"), "background: does not apply to an index"),
        (("--skin-tones",), "skin-tones: does not apply"),
        (("--clips-per-file", "2"), "clips-per-file: does not apply"),
    ],
)
def test_options_of_folders_are_refused_for_an_index(
    tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    folder = index_of(write_shards(tmp_path / "shards", 1, 4))
    result = CliRunner().invoke(group, arguments(config, folder, tmp_path / "run", 2, *more))
    assert says in str(result.exception)


def test_shards_without_an_index_and_an_index_elsewhere_are_told_apart(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 1, 4)
    for data, says in ((shards, "make an index of them"), (index_of(shards), "mdm train alone")):
        result = CliRunner().invoke(group, ["data", "check", str(data)])
        assert says in str(result.exception)
