"""Folders of pictures as people have them: read as meant, or refused with both readings."""

from __future__ import annotations

import csv
import json
import random
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdm_apple.data.dataset import DataError, Dataset
from mdm_apple.data.folder import open_folder
from mdm_apple.errors import MissingPackageError

CASES = Path(__file__).parents[2] / "shared" / "cases"


def picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), number * 9 % 256, np.uint8)).save(path)
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def opened(folder: Path) -> Dataset:
    return open_folder(folder, 8)


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        opened(folder)
    return str(caught.value)


def jsonl(rows: list[tuple[str, str]], column: str = "text") -> str:
    return "".join(json.dumps({"file_name": f, column: t}) + "\n" for f, t in rows)


def write_csv(path: Path, rows: list[tuple[str, str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows([("file_name", "text"), *rows])


TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv", "a.tsv", "c.json")


@pytest.mark.parametrize("place", ["", "train", "data/train"])
@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_every_kind_are_read_wherever_they_lie(
    tmp_path: Path, place: str, kind: str
) -> None:
    names = [(f"{n}.png", f"a drawing number {n}, red") for n in range(3)]
    for n, (file, _) in enumerate(names):
        picture(tmp_path / place / file, n)
    table = tmp_path / place / kind
    if kind.endswith("jsonl"):
        write(table, "\ufeff" + jsonl(names))
    elif kind.endswith("json"):
        write(table, json.dumps(dict(names)))
    else:
        write_csv(table, names, "\t" if kind.endswith("tsv") else ",")
    found = opened(tmp_path)
    assert found.captions() == [text for _, text in names]
    assert found.warnings == []


@pytest.mark.parametrize("column", ["caption", "prompt"])
def test_other_names_of_the_caption_column_are_read(tmp_path: Path, column: str) -> None:
    picture(tmp_path / "0.png")
    write(tmp_path / "metadata.jsonl", jsonl([("0.png", "a cat")], column))
    assert opened(tmp_path).captions() == ["a cat"]


def test_a_parquet_table_needs_its_library_and_is_read_with_it(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    table = tmp_path / "metadata.parquet"
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        table.write_bytes(b"PAR1")
        with pytest.raises(MissingPackageError, match=r"pip install 'mdm-apple\[parquet\]'"):
            opened(tmp_path)
        return
    parquet.write_table(pyarrow.table({"file_name": ["0.png"], "text": ["a cat"]}), table)
    assert opened(tmp_path).captions() == ["a cat"]
    table.write_bytes(table.read_bytes()[:-9])
    assert "cannot be read as Parquet" in refusal(tmp_path)


def test_a_table_without_captions_is_refused_by_its_columns(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    write(tmp_path / "metadata.csv", "file_name,label\n0.png,3\n")
    assert "found file_name, label" in refusal(tmp_path)


def test_a_table_beside_a_folder_of_images_may_leave_the_folder_out(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "0.png")
    write(tmp_path / "metadata.csv", "file_name,text\n0.png,a cat\n")
    found = opened(tmp_path)
    assert found.captions() == ["a cat"]
    assert "1 file name is spelled differently" in found.warnings[0]
    picture(tmp_path / "more" / "0.png")
    assert "may be images/0.png or more/0.png" in refusal(tmp_path)


SPELLINGS = ("sub\\é.png", "SUB/É.PNG", unicodedata.normalize("NFD", "sub/é.png"))


@pytest.mark.parametrize("written", SPELLINGS)
def test_other_spellings_of_a_name_are_understood(tmp_path: Path, written: str) -> None:
    picture(tmp_path / "sub" / "é.png")
    write(tmp_path / "metadata.jsonl", jsonl([(written, "a cat")]))
    found = opened(tmp_path)
    assert found.captions() == ["a cat"]
    assert "spelled differently" in found.warnings[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    write(tmp_path / "metadata.jsonl", jsonl([("0.png", "x"), ("gone.png", "y")]))
    message = refusal(tmp_path)
    assert "line 2" in message
    assert "gone.png" in message


def test_pictures_in_no_table_are_counted_and_named(tmp_path: Path) -> None:
    for n in range(6):
        picture(tmp_path / f"{n}.png", n)
    write(tmp_path / "metadata.jsonl", jsonl([("0.png", "a"), ("1.png", "b")]))
    found = opened(tmp_path)
    assert len(found) == 2
    assert "4 of 6 pictures are in no table and are not used (2.png, 3.png" in found.warnings[0]


@pytest.mark.parametrize("ending", [".txt", ".caption", ".cap"])
@pytest.mark.parametrize("place", ["", "10_sks cat"])
def test_caption_files_of_every_ending_are_read(tmp_path: Path, ending: str, place: str) -> None:
    for n in range(2):
        picture(tmp_path / place / f"{n}.png", n)
        write(tmp_path / place / f"{n}{ending}", f"a cat {n}")
    found = opened(tmp_path)
    assert found.captions() == ["a cat 0", "a cat 1"]
    assert ["no part of a caption" in w for w in found.warnings] == ([True] if place else [])


@pytest.mark.parametrize(
    ("pictures", "captions"),
    [("images", "captions"), ("", "captions"), ("images", ""), ("images/train", "texts/train")],
)
def test_captions_may_lie_in_a_folder_of_their_own(
    tmp_path: Path, pictures: str, captions: str
) -> None:
    for n in range(3):
        picture(tmp_path / pictures / f"{n}.png", n)
        write(tmp_path / captions / f"{n}.txt", f"a cat {n}")
    assert opened(tmp_path).captions() == ["a cat 0", "a cat 1", "a cat 2"]


def test_two_captions_of_one_picture_are_refused_unless_equal(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    write(tmp_path / "0.txt", "a cat")
    write(tmp_path / "0.caption", "a  cat\n")
    assert opened(tmp_path).captions() == ["a cat"]
    write(tmp_path / "0.caption", "a dog")
    assert "unclear" in refusal(tmp_path)


def test_one_caption_for_pictures_of_two_folders_is_refused(tmp_path: Path) -> None:
    for place in ("cats", "dogs"):
        picture(tmp_path / place / "0.png")
    write(tmp_path / "captions" / "0.txt", "a cat")
    assert "unclear" in refusal(tmp_path)


def test_one_class_alone_is_refused_with_both_readings(tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / "cats" / f"{n}.png", n)
    message = refusal(tmp_path)
    assert "'cats' is the caption of all 3 pictures" in message
    assert "only where they lie" in message


@pytest.mark.parametrize("file", ["cats/notes.txt", "captions.csv", "list.json", "dogs/0.cap"])
def test_caption_files_near_classes_are_refused(tmp_path: Path, file: str) -> None:
    for place in ("cats", "dogs"):
        for n in (1, 2, 3):
            picture(tmp_path / place / f"{place}{n}.png", n)
    write(tmp_path / "README.txt", "about these")
    assert set(opened(tmp_path).captions()) == {"cats", "dogs"}
    write(tmp_path / file, "[]" if file.endswith("json") else "a,b\n")
    message = refusal(tmp_path)
    assert file in message
    assert "the name of the folder" in message


def test_repeat_counts_are_no_part_of_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "10_tabby cat" / "0.png")
    picture(tmp_path / "5_dog" / "0.png", 1)
    found = opened(tmp_path)
    assert found.captions() == ["tabby cat", "dog"]
    assert "the number before _" in found.warnings[0]
    picture(tmp_path / "bird" / "0.png", 2)  # so the numbers belong to the names
    assert opened(tmp_path).captions() == ["10 tabby cat", "5 dog", "bird"]


def test_splits_are_named_and_one_alone_is_no_class(tmp_path: Path) -> None:
    for place in ("cats", "dogs"):
        picture(tmp_path / "train" / place / "0.png")
    assert opened(tmp_path).captions() == ["cats", "dogs"]
    picture(tmp_path / "test" / "cats" / "0.png")
    assert "holds the splits test and train" in refusal(tmp_path)
    bare = tmp_path / "bare"
    picture(bare / "train" / "0.png")
    assert "no captioned picture" in refusal(bare)


def test_a_constant_caption_is_said(tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / f"{n}.png", n)
        write(tmp_path / f"{n}.txt", "rex")
    assert "all 3 pictures have the caption 'rex'" in opened(tmp_path).warnings[0]


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
@pytest.mark.parametrize(
    ("case", "captions"),
    [
        ("hf_train_layout", ["a drawing number 0", "a drawing number 1"]),
        ("csv_beside_images", ["a shirt 0", "a shirt 1"]),
        ("caption_extension", ["a cat 0", "a cat 1"]),
        ("metadata_lists_two_of_six", ["a shirt 0", "a shirt 1"]),
    ],
)
def test_the_cases_are_read_as_meant(case: str, captions: list[str]) -> None:
    assert opened(CASES / case).captions() == captions


# Tables that would be misread


def pictures(folder: Path, *names: str) -> None:
    for n, name in enumerate(names):
        picture(folder / name, n)


def skipping(folder: Path) -> Dataset:
    return open_folder(folder, 8, skip_bad=True)


def test_an_unquoted_comma_of_the_last_column_belongs_to_the_caption(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "1.png")
    text = "file_name,text\n0.png,a red cat, sitting on a mat\n1.png,a dog,,\n"
    write(tmp_path / "metadata.csv", text)
    assert opened(tmp_path).captions() == ["a red cat, sitting on a mat", "a dog"]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("file_name,text,n\n1.png,a dog,2\n0.png,a red cat, on a mat,1\n", 3),
        ("text,file_name\na dog,1.png\na red cat, on a mat,0.png\n", 3),
        ("0.png,cat,a cat on a mat\n1.png,a dog\n", 1),
        ("file_name,text,n\n0.png,a red cat, on a mat,1\n1.png,a dog,2\n", 2),
    ],
)
def test_a_row_longer_than_the_header_is_refused_by_its_line(
    tmp_path: Path, table: str, line: int
) -> None:
    pictures(tmp_path, "0.png", "1.png")
    write(tmp_path / "captions.csv", table)
    assert f"captions.csv line {line}: has " in refusal(tmp_path)
    assert skipping(tmp_path).captions() == ["a dog"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png")
    write(tmp_path / "metadata.csv", "file_name,Text,text\n0.png,a cat,a dog\n")
    assert "has two columns 'text'" in refusal(tmp_path)
    write(tmp_path / "metadata.csv", "file_name,id,id,text\n0.png,1,2,a cat\n")
    assert opened(tmp_path).captions() == ["a cat"]
    (tmp_path / "metadata.csv").unlink()
    write(tmp_path / "metadata.jsonl", '{"file_name": "0.png", "text": "a", "text": "b"}')
    assert "names 'text' twice" in refusal(tmp_path)


@pytest.mark.parametrize(
    "rows",
    [
        '0.png,"a cat\n1.png,a dog\n',
        '0.png,"a cat\n1.png,a dog"\n',
        '0.png,"a cat\n1.png,"a dog"\n',
        '0.png,"a" cat\n1.png,a dog\n',
    ],
)
def test_a_stray_quote_swallows_no_row(tmp_path: Path, rows: str) -> None:
    pictures(tmp_path, "0.png", "1.png")
    write(tmp_path / "metadata.csv", f"file_name,text\n{rows}")
    assert "metadata.csv line 2" in refusal(tmp_path)


def test_quotes_of_other_kinds_are_kept(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "1.png")
    table = tmp_path / "metadata.csv"
    write(table, 'file_name,text\n0.png,a 3" nail\n1.png,"two\nlines, and ""more"""\n')
    assert opened(tmp_path).captions() == ['a 3" nail', 'two lines, and "more"']
    table.unlink()
    write(tmp_path / "metadata.tsv", 'file_name\ttext\n0.png\t"a" cat\n1.png\t"a dog\n')
    assert opened(tmp_path).captions() == ['"a" cat', '"a dog']


def test_capitals_of_columns_do_not_matter(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png")
    write(tmp_path / "metadata.csv", "Image,Caption\n0.png,a cat\n")
    assert opened(tmp_path).captions() == ["a cat"]


def test_two_columns_of_captions_are_refused_where_they_differ(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "1.png")
    table = tmp_path / "metadata.csv"
    write(table, "file_name,text,caption\n0.png,a cat,a  cat\n1.png,a dog,\n")
    assert opened(tmp_path).captions() == ["a cat", "a dog"]
    write(table, "file_name,text,caption\n0.png,a cat,a cat\n1.png,a dog,a hound\n")
    assert "line 3: unclear whether 'text' or 'caption'" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["table", "files"])
def test_labels_of_boxes_are_no_captions(tmp_path: Path, kind: str) -> None:
    pictures(tmp_path, "0.png", "1.png")
    for label in ("0 0.5 0.5 0.1 0.2\n1 .5 0.5 1e-1 0.2", "7"):
        if kind == "table":
            rows = [("0.png", label), ("1.png", "3")]
            write(tmp_path / "metadata.jsonl", jsonl(rows))
        else:
            write(tmp_path / "0.txt", label)
            write(tmp_path / "1.txt", "3")
        if label == "7":
            assert "all captions are numbers, such as '7'" in opened(tmp_path).warnings[-1]
        else:
            assert "labels of boxes" in refusal(tmp_path)


BAD_ROWS = ['{"file_name": "0.png", "text": null}', '{"file_name": "0.png", "text": 3}', "{"]


@pytest.mark.parametrize("bad", BAD_ROWS)
@pytest.mark.parametrize("first", [True, False])
def test_one_bad_row_is_a_bad_picture(tmp_path: Path, bad: str, first: bool) -> None:
    pictures(tmp_path, "0.png", "1.png")
    good = '{"file_name": "1.png", "text": "a dog"}'
    write(tmp_path / "metadata.jsonl", f"{bad}\n{good}" if first else f"{good}\n{bad}")
    assert f"metadata.jsonl line {1 if first else 2}" in refusal(tmp_path)
    found = skipping(tmp_path)
    assert found.captions() == ["a dog"]
    (name,) = found.left_out
    assert name == ("0.png" if "0.png" in bad else f"metadata.jsonl line {1 if first else 2}")


def test_a_row_without_a_caption_is_a_bad_picture(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "1.png")
    write(tmp_path / "metadata.csv", "file_name,text\n0.png\n1.png,a dog\n")
    assert "metadata.csv line 2" in refusal(tmp_path)
    assert skipping(tmp_path).captions() == ["a dog"]


@pytest.mark.parametrize("name", ["workflow.json", "list.jsonl", "table.csv", "train-0.parquet"])
def test_another_table_that_cannot_be_read_is_not_used(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "0.png")
    (tmp_path / name).write_bytes(b'{"nodes": [\xff')
    assert f"{name} is not used: " in refusal(tmp_path)
    write(tmp_path / "0.txt", "a cat")
    found = opened(tmp_path)
    assert found.captions() == ["a cat"]
    assert any(f"{name} is not used: " in w for w in found.warnings)


@pytest.mark.parametrize(
    ("table", "said"),
    [("", "it is empty"), ("file_name,text\n", "it has no rows"), ("a,b\n1,2\n", "found a, b")],
)
def test_a_table_without_rows_is_described(tmp_path: Path, table: str, said: str) -> None:
    pictures(tmp_path, "0.png")
    write(tmp_path / "metadata.csv", table)
    assert said in refusal(tmp_path)


def test_a_json_of_other_things_is_not_called_empty(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png")
    write(tmp_path / "metadata.json", '{"version": 1, "0.png": "a cat"}')
    assert "found version, 0.png" in refusal(tmp_path)


# Names of tables that would be given to other pictures


def test_the_caption_of_a_missing_picture_is_given_to_no_other(tmp_path: Path) -> None:
    pictures(tmp_path, "b/0.png")
    write(tmp_path / "metadata.jsonl", jsonl([("a/0.png", "a cat"), ("b/0.png", "a dog")]))
    assert "a/0.png: no such file" in refusal(tmp_path)
    assert skipping(tmp_path).captions() == ["a dog"]


def test_a_picture_that_its_folder_lacks_is_found_nowhere_else(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png", "b/0.png")
    write(tmp_path / "metadata.jsonl", jsonl([("a/0.png", "a cat"), ("a/1.png", "a dog")]))
    assert "a/0.png: no such file" in refusal(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "metadata.jsonl", jsonl([("empty/0.png", "a cat"), ("a/1.png", "a dog")]))
    assert "empty/0.png: no such file" in refusal(tmp_path)
    write(tmp_path / "metadata.jsonl", jsonl([("gone/0.png", "a cat"), ("a/1.png", "a dog")]))
    assert opened(tmp_path).captions() == ["a cat", "a dog"]


def test_two_names_for_one_picture_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "c/0.png")
    write(tmp_path / "metadata.jsonl", jsonl([("a/0.png", "a cat"), ("b/0.png", "a dog")]))
    message = refusal(tmp_path)
    assert "c/0.png may be a/0.png or b/0.png" in message
    write(tmp_path / "metadata.jsonl", jsonl([("a/0.png", "a cat"), ("a/0.png", "a pet")]))
    assert opened(tmp_path).captions() == ["a cat", "a pet"]


def test_a_spelling_is_tolerated_only_for_a_picture_that_no_row_names(tmp_path: Path) -> None:
    pictures(tmp_path, "img.png")
    write(tmp_path / "metadata.jsonl", jsonl([("IMG.png", "a cat"), ("img.png", "a dog")]))
    assert "IMG.png: no such file" in refusal(tmp_path)


@pytest.mark.parametrize("written", ["../images/0.png", "./../images/./0.png", "..\\images\\0.png"])
def test_a_name_may_climb_within_the_folder(tmp_path: Path, written: str) -> None:
    pictures(tmp_path / "data", "images/0.png")
    write(tmp_path / "data" / "meta" / "metadata.jsonl", jsonl([(written, "a cat")]))
    found = opened(tmp_path / "data")
    assert found.captions() == ["a cat"]
    assert [file.name for file in found.files] == ["images/0.png"]
    pictures(tmp_path, "images/0.png")
    outside = [("../../images/0.png", "x"), ("../../data/images/0.png", "x")]
    for row in outside:
        write(tmp_path / "data" / "meta" / "metadata.jsonl", jsonl([row]))
        assert "leads out of the folder" in refusal(tmp_path / "data")


# Folders that would be misread


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dataset_infos.json", '{"version": 1}'),
        ("info.csv", "key,value\na,b\n"),
        ("info.csv", "path,description\nother.png,a thing\n"),
        ("list.jsonl", "{"),
    ],
)
def test_a_table_of_other_things_hides_no_splits(tmp_path: Path, file: str, text: str) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "0.png")
        write(tmp_path / split / "0.txt" if "path" not in text else tmp_path / "x.md", "a cat")
    write(tmp_path / file, text)
    assert "holds the splits test and train" in refusal(tmp_path)


def test_a_table_of_pictures_joins_splits(tmp_path: Path) -> None:
    pictures(tmp_path, "train/0.png", "test/0.png")
    rows = [("train/0.png", "a cat"), ("test/0.png", "a dog")]
    write(tmp_path / "all.csv", "file_name,text\n" + "\n".join(map(",".join, rows)))
    assert opened(tmp_path).captions() == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "names",
    [
        ("train2017", "val2017"),
        ("images", "masks"),
        ("cats", "train"),
        ("10_images", "5_cats"),
        ("cats", "Test_Images"),
        ("photos-2", "dogs"),
        ("data", "cats"),
    ],
)
def test_a_general_name_is_no_caption(tmp_path: Path, names: tuple[str, str]) -> None:
    for place in names:
        picture(tmp_path / place / "0.png")
    message = refusal(tmp_path)
    assert "is the caption of the pictures in that folder or" in message
    assert any(repr(name) in message for name in names)


def test_names_that_begin_like_general_ones_are_classes(tmp_path: Path) -> None:
    names = ("train station", "valley", "test tube", "data center", "photographer")
    for place in names:
        picture(tmp_path / place / "0.png")
    assert sorted(opened(tmp_path).captions()) == sorted(names)


def test_a_file_with_the_name_of_a_picture_makes_classes_unclear(tmp_path: Path) -> None:
    pictures(tmp_path, "cats/0.png", "dogs/0.png")
    write(tmp_path / "cats" / "notes.md", "x")
    assert opened(tmp_path).captions() == ["cats", "dogs"]
    for name in ("0.prompt", "0.png.prompt"):
        write(tmp_path / "cats" / name, "a tabby")
        assert f"cats/{name}" in refusal(tmp_path)
        (tmp_path / "cats" / name).unlink()


def test_an_ending_before_the_ending_is_no_part_of_the_name(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png")
    write(tmp_path / "0.caption.txt", "a cat")
    assert opened(tmp_path).captions() == ["a cat"]
    write(tmp_path / "0.txt", "a dog")
    assert "unclear" in refusal(tmp_path)


NFD = unicodedata.normalize("NFD", "é")


@pytest.mark.parametrize(("image", "text"), [("img_1", "IMG_1"), ("é", NFD), (NFD, "é")])
@pytest.mark.parametrize("place", ["", "captions"])
def test_other_spellings_of_a_stem_are_understood(
    tmp_path: Path, image: str, text: str, place: str
) -> None:
    pictures(tmp_path, f"{image}.png")
    write(tmp_path / place / f"{text}.txt", "a cat")
    assert opened(tmp_path).captions() == ["a cat"]


@pytest.mark.skipif(sys.platform == "darwin", reason="there these are one file")
def test_the_same_spelling_goes_first_and_two_others_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "img.png", "IMG.png")
    write(tmp_path / "img.txt", "a cat")
    found = opened(tmp_path)
    assert found.captions() == ["a cat"]
    assert found.files[0].name == "img.png"
    write(tmp_path / "IMG.txt", "a dog")
    assert opened(tmp_path).captions() == ["a dog", "a cat"]
    (tmp_path / "img.txt").unlink()
    (tmp_path / "IMG.txt").rename(tmp_path / "Img.txt")
    assert "Img.txt for IMG.png" in refusal(tmp_path)
    (tmp_path / "IMG.png").unlink()
    write(tmp_path / "iMG.txt", "a bird")
    assert "Img.txt or iMG.txt" in refusal(tmp_path)


def test_folders_that_lie_too_deep_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "a/b/c/d/e/f/g/h/8.png", "a/b/c/d/e/f/g/h/i/9.png")
    write(tmp_path / "0.txt", "a cat")
    write(tmp_path / "a/b/c/d/e/f/g/h/8.txt", "a dog")
    found = opened(tmp_path)
    assert found.captions() == ["a cat", "a dog"]
    assert "a/b/c/d/e/f/g/h/i lies more than 8 folders down" in found.warnings[0]


def test_one_file_is_not_many(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "1.png")
    write(tmp_path / "0.txt", "a cat")
    assert opened(tmp_path).warnings == ["1 file is not used: a picture without a caption (1.png)."]
    write(tmp_path / "x.md", "x")
    assert opened(tmp_path).warnings == [
        "2 files are not used: a picture without a caption (1.png), a file of no picture (x.md)."
    ]


# Folders made by a generator


def a_table(root: Path, chance: random.Random, names: list[str], captions: list[str]) -> None:
    place = chance.choice(["", "train", "images"])
    for n, name in enumerate(names):
        picture(root / place / name, n)
    inside = chance.random() < 0.5
    files = names if inside or not place else [f"{place}/{name}" for name in names]
    rows = list(zip(files, captions, strict=True))
    kind = chance.choice(["metadata.jsonl", "metadata.csv", "labels.jsonl", "captions.json"])
    table = root / (place if inside else "") / kind
    if kind.endswith("jsonl"):
        write(table, jsonl(rows, chance.choice(["text", "caption"])))
    elif kind.endswith("json"):
        write(table, json.dumps(dict(rows)))
    else:
        write_csv(table, rows, chance.choice(",;"))


def caption_files(root: Path, chance: random.Random, names: list[str], captions: list[str]) -> None:
    place = chance.choice(["", "10_sks cat", "images"])
    texts = place if chance.random() < 0.6 else chance.choice(["captions", "texts"])
    ending = chance.choice([".txt", ".caption"])
    for n, (name, caption) in enumerate(zip(names, captions, strict=True)):
        picture(root / place / name, n)
        write(root / texts / f"{Path(name).stem}{ending}", caption)


def classes(root: Path, chance: random.Random, names: list[str], captions: list[str]) -> None:
    prefix = chance.choice(["", "7_"])
    for n, (name, caption) in enumerate(zip(names, captions, strict=True)):
        picture(root / f"{prefix}{caption.replace(' ', '_')}" / name, n)


Layout = Callable[[Path, random.Random, list[str], list[str]], None]
LAYOUTS: list[Layout] = [a_table, caption_files, classes]


@pytest.mark.parametrize("seed", range(200))
def test_a_generated_folder_is_read_as_meant_or_refused_with_both_readings(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    names = [f"p{n}.{chance.choice(['png', 'jpg', 'webp'])}" for n in range(4)]
    meant = dict(zip(names, ["red cat", "blue dog", "old tree", "big sun"], strict=True))
    layouts = chance.sample(LAYOUTS, 2 if chance.random() < 0.4 else 1)
    for layout in layouts:
        layout(tmp_path, chance, names, list(meant.values()))
    if chance.random() < 0.3:
        write(tmp_path / chance.choice(["README.txt", "LICENSE.txt", ".DS_Store"]), "x")
    if len(layouts) == 1:
        assert sorted(opened(tmp_path).captions()) == sorted(meant.values())
        return
    said = ""
    try:
        found = set(opened(tmp_path).captions())
    except DataError as error:
        found, said = set[str](), str(error)
    # where two layouts agree, the folder may be read; but no caption is invented
    assert found <= set(meant.values())
    assert len(found) > 1 or " or " in said or "splits" in said


# The same with a fault that people make


def commas(root: Path, chance: random.Random, meant: dict[str, str]) -> None:
    """A table written without quotes."""
    pictures(root, *meant)
    columns = chance.choice(
        ["file_name,text", "text,file_name", "id,file_name,text", "file,text,n"]
    )
    lines = [columns]
    for name, caption in meant.items():
        cells = {"text": caption, "id": "1", "n": "2"}
        lines.append(",".join(cells.get(column, name) for column in columns.split(",")))
    write(root / chance.choice(["metadata.csv", "captions.csv"]), "\n".join(lines))


def stray_quotes(root: Path, chance: random.Random, meant: dict[str, str]) -> None:
    """A table in which some captions begin or end with a quote."""
    pictures(root, *meant)
    mark = chance.choice(['"{}', '{}"', "{}"])
    delimiter = chance.choice("\t;")
    lines = [f"file_name{delimiter}text"]
    lines += [
        f"{name}{delimiter}{(mark if chance.random() < 0.5 else '{}').format(caption)}"
        for name, caption in meant.items()
    ]
    write(root / "metadata.csv", "\n".join(lines))


def wrong_folders(root: Path, chance: random.Random, meant: dict[str, str]) -> None:
    """A table whose folders are others than those of the pictures, of which one is missing."""
    places = chance.sample(["a", "b", "images/a", "c"], 2)
    names = list(meant)
    rows = [(f"{chance.choice(places)}/{name}", meant[name]) for name in names]
    for n, name in enumerate(names):
        if chance.random() < 0.8:
            picture(root / chance.choice([*places, "elsewhere"]) / name, n)
    if chance.random() < 0.5:
        rows.append((f"gone/{names[0]}", "no caption of any picture"))
    write(root / "metadata.jsonl", jsonl(rows))


def several_splits(root: Path, chance: random.Random, meant: dict[str, str]) -> None:
    """Two splits, with a table of other things at the top."""
    for split in chance.sample(["train", "test", "val"], 2):
        for n, (name, caption) in enumerate(meant.items()):
            picture(root / split / name, n)
            write(root / split / f"{Path(name).stem}.txt", f"{caption}")
    write(root / chance.choice(["dataset_infos.json", "info.csv", "x.md"]), '{"a": 1}')


def general_names(root: Path, chance: random.Random, meant: dict[str, str]) -> None:
    """Folders that are no classes, and perhaps one that is."""
    some = ["images", "masks", "train2017", "val_2017", "Photos", "data", "img_1", "test-set"]
    for place in [*chance.sample(some, 2), *chance.choice([[], ["cats"]])]:
        pictures(root / place, *meant)


Spoil = Callable[[Path, random.Random, dict[str, str]], None]
FAULTS: list[Spoil] = [commas, stray_quotes, wrong_folders, several_splits, general_names]


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_no_fault_gives_a_picture_another_caption(tmp_path: Path, fault: Spoil, seed: int) -> None:
    chance = random.Random(seed)
    names = [f"p{n}.{chance.choice(['png', 'jpg'])}" for n in range(3)]
    captions = ["red cat, asleep", "blue dog", "old tree, in snow, alone"]
    meant = dict(zip(names, captions, strict=True))
    fault(tmp_path, chance, meant)
    try:
        found = skipping(tmp_path)
    except DataError:
        return
    assert fault not in (several_splits, general_names)
    for file, caption in zip(found.files, found.captions(), strict=True):
        assert caption.strip('"') == meant[Path(file.name).name]


def test_some_folders_with_a_fault_are_read(tmp_path: Path) -> None:
    meant = {"0.png": "red cat, asleep", "1.png": "a dog"}
    read = 0
    for seed in range(20):
        for fault in (commas, stray_quotes, wrong_folders):
            folder = tmp_path / f"{fault.__name__}{seed}"
            fault(folder, random.Random(seed), meant)
            try:
                read += len(skipping(folder))
            except DataError:
                continue
    assert read > 30
