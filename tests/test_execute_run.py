"""`mdm run` and `mdm inspect` on anybody's package: files in, files out, hostile ones refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from execute_cases import arrays, ct, mil_package, save, traced
from PIL import Image

from mdm_apple.cli import group
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.execute.result_files import write_results
from mdm_apple.conversion.execute.schema import model_message

torch = pytest.importorskip("torch")
nn = torch.nn
mb: Any = ct.converters.mil.Builder

HIGH, WIDE = 8, 10
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def mdm(*words: object) -> Result:
    return CliRunner().invoke(group, [str(word) for word in words])


def refused(*words: object) -> str:
    """The sentence that refuses a command."""
    result = mdm(*words)
    assert result.exit_code, result.output
    sentence = str(result.exception)
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier of pictures, one that returns a picture, and one of arrays."""
    folder = tmp_path_factory.mktemp("packages")
    x = torch.rand(1, 3, HIGH, WIDE)
    torch.manual_seed(8)
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1))
    image = ct.ImageType(name="image", shape=x.shape, scale=1 / 255.0)
    labels = ct.ClassifierConfig(["cat", "dog", "bird", "fish"])
    save(traced(pooled, (x,), [image], classifier_config=labels), folder, "classifier")
    plain = ct.ImageType(name="image", shape=x.shape)
    made = [ct.ImageType(name="picture", color_layout=ct.colorlayout.BGR)]
    save(traced(Darker(), (x,), [plain], outputs=made), folder, "darker")
    save(traced(nn.Linear(5, 2), (torch.rand(1, 5),), arrays(torch.rand(1, 5))), folder, "linear")
    return folder


class Darker(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 0.5


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    pixels = np.random.RandomState(9).randint(0, 256, (HIGH, WIDE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_classifier_of_a_picture_writes_label_and_probabilities(
    packages: Path, picture: Path, tmp_path: Path
) -> None:
    out, package = tmp_path / "new" / "out", packages / "classifier.mlpackage"
    result = mdm("run", package, "--input", f"image={picture}", "--out", out)
    assert result.exit_code == 0, result.output
    want = Package.open(package).load()({"image": np.asarray(Image.open(picture))})
    assert json.loads((out / "classLabel.json").read_text()) == want["classLabel"]
    assert json.loads((out / "classLabel_probs.json").read_text()) == want["classLabel_probs"]
    assert f"classLabel: classLabel.json  {want['classLabel']}" in result.output
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]


def test_output_that_is_a_picture_becomes_one(
    packages: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = mdm(
        "run", packages / "darker.mlpackage", "--input", f"image={picture}", "--out", out, "--json"
    )
    # the program halves planes in its order and the package calls the result BGR
    given = np.asarray(Image.open(picture)).astype(np.float64)[..., ::-1]
    assert np.array_equal(np.asarray(Image.open(out / "picture.png")), np.rint(given * 0.5))
    (described,) = json.loads(result.output)["results"]
    assert described["file"] == "picture.png"
    assert described["shape"] == [1, 3, HIGH, WIDE]


def test_array_in_array_out_and_only_overwritten_when_told(packages: Path, tmp_path: Path) -> None:
    x, out, file = np.random.RandomState(1).rand(1, 5), tmp_path / "out", tmp_path / "x.npy"
    np.save(file, np.asfortranarray(x.astype(">f8")))
    package = packages / "linear.mlpackage"
    words = ("run", package, "--input", f"in0={file}", "--out", out)
    assert mdm(*words).exit_code == 0
    (name, want), (written,) = *Package.open(package).load()({"in0": x}).items(), out.iterdir()
    assert written.name == f"{name}.npy"
    assert np.array_equal(np.load(written, allow_pickle=False), want)
    assert "--overwrite" in refused(*words)
    (out / "mine.txt").write_text("mine")
    np.save(file, x * 2)
    assert mdm(*words, "--overwrite").exit_code == 0
    assert not np.array_equal(np.load(written), want)
    assert (out / "mine.txt").read_text() == "mine"


def test_a_model_file_without_a_package_runs(tmp_path: Path) -> None:
    path = mil_package(tmp_path, lambda x: mb.mul(x=x, y=3.0), [(4,)])
    file = tmp_path / "model.mlmodel"
    shutil.copy(path / MODEL, file)
    np.save(tmp_path / "x.npy", np.arange(4))
    out = tmp_path / "out"
    assert mdm("run", file, "--input", f"x={tmp_path / 'x.npy'}", "--out", out).exit_code == 0
    (written,) = out.iterdir()
    assert np.array_equal(np.load(written), 3 * np.arange(4))


# --- refused -----------------------------------------------------------------------------------


def npy(folder: Path, content: bytes) -> str:
    path = folder / "x.npy"
    path.write_bytes(content)
    return f"in0={path}"


def saved(array: Any, folder: Path) -> bytes:
    np.save(folder / "saved.npy", array, allow_pickle=True)
    return (folder / "saved.npy").read_bytes()


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


def test_hostile_arrays_are_refused_and_leave_nothing(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = saved(np.zeros((1, 5), np.float32), tmp_path)
    huge = good.replace(b"(1, 5)", b"(99999999, 999999)").replace(b"                ", b"    ", 1)
    cases = {
        "objects": (saved(np.array([Canary()], object), tmp_path), "cannot be read"),
        "a pickle": (pickle.dumps(Canary()), "cannot be read"),
        "texts": (saved(np.array(["a"]), tmp_path), "expected numbers, got type <U1"),
        "complex": (saved(np.zeros((1, 5), complex), tmp_path), "expected numbers"),
        "cut short": (good[:-3], "cannot be read"),
        "empty": (b"", "cannot be read"),
        "huge": (huge, "cannot be read"),
        "another shape": (saved(np.zeros((5, 1)), tmp_path), r"expected fp32[1, 5], got float64[5"),
        "no numbers": (saved(np.zeros((1, 0)), tmp_path), "got float64[1, 0]"),
    }
    for name, (content, message) in cases.items():
        words = ("--input", npy(tmp_path, content), "--out", tmp_path / "out")
        assert message in refused("run", packages / "linear.mlpackage", *words), name
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "unpickled").exists()


def test_pictures_that_do_not_fit_are_refused(packages: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 16)).save(other)
    cut = tmp_path / "cut.png"
    noise = np.random.RandomState(0).randint(0, 256, (HIGH, WIDE, 3)).astype(np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:100])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    unknown = tmp_path / "x.tiff"
    unknown.touch()
    package, out = packages / "classifier.mlpackage", tmp_path / "out"
    for file, message in (
        (other, "a picture in RGB, 10 wide and 8 high, and this is 20 wide and 16 high; resize"),
        (cut, "cannot be read as"),
        (text, "cannot be read as"),
        (unknown, "is read from a .npy file or a picture"),
        (tmp_path / "none.png", "no such file"),
    ):
        assert message in refused("run", package, "--input", f"image={file}", "--out", out)
    words = ("--input", f"in0={other}", "--out", out)
    assert "is no picture; expected fp32[1, 5]" in refused(
        "run", packages / "linear.mlpackage", *words
    )
    assert not out.exists()


def test_pixels_that_are_damaged_are_refused(packages: Path, tmp_path: Path) -> None:
    """Asking a PNG for its EXIF decodes it, so a guard against damaged EXIF must come later."""
    file, out = tmp_path / "p.png", tmp_path / "out"
    noise = np.random.RandomState(0).randint(0, 256, (HIGH, WIDE, 3)).astype(np.uint8)
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    middle = whole.index(b"IDAT") + 100
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    given = ("run", packages / "classifier.mlpackage", "--input", f"image={file}", "--out", out)
    assert "cannot be read as" in refused(*given)
    assert not out.exists()


@pytest.mark.parametrize(
    ("mode", "gray"), [("L", 77), ("LA", 77), ("P", 77), ("RGBA", 77), ("I;16", 77)]
)
def test_pictures_of_every_mode_are_taken(
    packages: Path, tmp_path: Path, mode: str, gray: int
) -> None:
    file, out = tmp_path / "p.png", tmp_path / "out"
    if mode == "I;16":
        Image.fromarray(np.full((HIGH, WIDE), gray * 257, np.uint16)).save(file)
    else:
        plain = Image.new("RGB", (WIDE, HIGH), (gray,) * 3)
        (plain.quantize() if mode == "P" else plain.convert(mode)).save(file)
    package = packages / "darker.mlpackage"
    assert mdm("run", package, "--input", f"image={file}", "--out", out).exit_code == 0
    half = np.asarray(Image.open(out / "picture.png"))
    assert np.array_equal(half, np.full((HIGH, WIDE, 3), round(gray / 2)))


def test_calls_that_cannot_work_are_refused(packages: Path, picture: Path, tmp_path: Path) -> None:
    package, out = packages / "classifier.mlpackage", ("--out", tmp_path / "out")
    given = ("--input", f"image={picture}")
    bundle, model = tmp_path / "b.bundle", tmp_path / "m"
    for folder, name in ((bundle, "manifest.json"), (model, "config.json")):
        folder.mkdir()
        (folder / name).touch()
    compiled = tmp_path / "x.mlmodelc"
    compiled.mkdir()
    for words, message in (
        ((package, *out), "input 'image': missing; expected a picture in RGB"),
        ((package, "--input", f"picture={picture}", *out), "input 'picture': unknown"),
        ((package, "--input", "image", *out), "expected NAME=FILE"),
        ((package, *given, *given, *out), "is given twice"),
        ((package, *given, "--function", "other", *out), "no function 'other'"),
        ((tmp_path / "none.mlpackage", *given, *out), "no such package"),
        ((bundle, *given, *out), "is a bundle"),
        ((model, *given, *out), "is a model folder"),
        ((compiled, *given, *out), "is compiled"),
        ((picture, *given, *out), "is no package"),
    ):
        assert message in refused("run", *words)
    assert not (tmp_path / "out").exists()


def test_a_neural_network_is_refused_by_its_type(tmp_path: Path) -> None:
    message = model_message()
    message.specificationVersion = 4
    message.neuralNetwork.layers.add().name = "one"
    file = tmp_path / "old.mlmodel"
    file.write_bytes(message.SerializeToString())
    for words in (("run", file, "--out", tmp_path / "out"), ("inspect", file)):
        assert "expected an ML program, got neuralNetwork; only ML programs" in refused(*words)


def test_names_of_results_stay_in_their_folder(tmp_path: Path) -> None:
    names = ["../../up", "/etc/passwd", ".hidden", "a/b", "A_B", "a_b", "", "ü" * 300]
    results = {name: np.full(2, i) for i, name in enumerate(names)}
    written = write_results(tmp_path / "deep" / "out", results, {})
    assert {p.parent for p in written.values()} == {tmp_path / "deep" / "out"}
    assert len({p.name.lower() for p in written.values()}) == len(names)
    for i, path in enumerate(written.values()):
        assert np.array_equal(np.load(path), [i, i])
        assert len(path.name) < 120
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    write_results(tmp_path / "out", {"p": {"cat": float("nan"), "dog": 1.0}}, {})
    assert json.loads((tmp_path / "out" / "p.json").read_text()) == {"cat": None, "dog": 1.0}


# --- mdm inspect -------------------------------------------------------------------------------


def test_inspect_shows_a_package_that_is_not_ours(packages: Path) -> None:
    result = mdm("inspect", packages / "classifier.mlpackage")
    for line in (
        "input image: a picture in RGB, 10 wide and 8 high",
        "output classLabel_probs: dictionary",
        "classify 1",
        "mdm run takes it",
    ):
        assert line in result.output
    found = json.loads(mdm("inspect", packages / "linear.mlpackage", "--json").output)
    assert found["operations"] == {"linear": 1}
    assert found["inputs"] == {"in0": "fp32[1, 5]"}
    assert sum(found["weights"].values()) == 4 * 5 * 2  # a small bias is in the program itself


def test_inspect_names_what_cannot_be_run(tmp_path: Path) -> None:
    path = mil_package(tmp_path, lambda x: mb.random_normal(shape=(2, 3), seed=1), [(4,)])
    found = json.loads(mdm("inspect", path, "--json").output)
    assert found["unknown"] == ["random_normal"]
    assert "the operation 'random_normal' is not supported" in found["refusal"]
    assert "not known to mdm run: random_normal" in mdm("inspect", path).output
    np.save(tmp_path / "x.npy", np.zeros(4))
    words = ("--input", f"x={tmp_path / 'x.npy'}", "--out", tmp_path / "out")
    assert "the operation 'random_normal' is not supported" in refused("run", path, *words)
