"""The Python door: `import mdm_apple as mdm`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from small import CAPTIONS, trainable_model

import mdm_apple as mdm
from mdm_apple.cli import group
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.errors import MdmError
from mdm_apple.model import Model
from mdm_apple.sampling.filters import FilteredError
from mdm_apple.sampling.picture import StepPreview
from mdm_apple.sampling.pictures import Pixels, read_recipe
from mdm_apple.sampling.settings import SampleSettings
from mdm_apple.training.settings import TrainConfig

pytest_plugins = ["bundles"]

IMPORT = """
import resource, sys, time
bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
import mdm_apple
seconds = time.process_time() - began
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - bare
unit = 1 if sys.platform == "darwin" else 1024
heavy = {"torch", "mlx", "coremltools", "numpy", "PIL"} & set(sys.modules)
print(seconds, grown * unit / 1e6, sorted(heavy))
"""


class Stripes:
    """Captioned pictures as an object of the caller."""

    def __len__(self) -> int:
        return len(CAPTIONS)

    def caption(self, index: int) -> str:
        return CAPTIONS[index]

    def picture(self, index: int, side: int) -> Image.Image:
        return Image.new("RGB", (side, side), (index * 15, 255 - index * 15, 128))


@pytest.fixture(scope="module")
def student() -> Model:
    return mdm.load("box:student", backend="torch")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "run"
    mdm.train(Stripes(), out, steps=2, config=trainable_model(), backend="torch")
    return out


def test_importing_costs_little_and_loads_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    seconds, megabytes, heavy = done.stdout.split(maxsplit=2)
    assert float(seconds) < 0.05
    assert float(megabytes) < 40
    assert heavy.strip() == "[]"


def test_every_name_of_the_door_is_there_and_no_other() -> None:
    for name in mdm.__all__:
        assert getattr(mdm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = mdm.lode  # type: ignore[attr-defined]


def test_a_picture_has_the_bytes_that_the_command_writes(student: Model, tmp_path: Path) -> None:
    by_command, by_door = tmp_path / "a.png", tmp_path / "b.png"
    asked = ["sample", "red heart", "--seed", "7", "--backend", "torch", "--out", str(by_command)]
    result = CliRunner().invoke(group, asked)
    assert result.exit_code == 0, result.exception
    student("red heart", seed=7).save(by_door)
    assert by_door.read_bytes() == by_command.read_bytes()


def test_a_picture_shows_itself_and_tells_its_levels_and_recipe(student: Model) -> None:
    picture = student("red heart", seed=7, guidance=2)
    assert [level.shape for level in picture.levels] == [(64, 64, 3), (32, 32, 3), (16, 16, 3)]
    assert picture.image.size == (64, 64)
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture.recipe is not None
    assert (picture.recipe.seed, picture.recipe.guidance) == (7, 2)


def test_n_pictures_are_those_of_consecutive_seeds(student: Model) -> None:
    several = student("red heart", n=2, seed=7)
    alone = [student("red heart", seed=seed) for seed in (7, 8)]
    assert [p.png for p in several] == [p.png for p in alone]


def test_a_seed_that_nobody_gave_is_in_the_recipe_and_makes_the_picture_again(
    student: Model,
) -> None:
    first, second = student("cat face"), student("cat face")
    assert first.recipe is not None
    assert second.recipe is not None
    assert first.recipe.seed != second.recipe.seed
    assert student("cat face", seed=first.recipe.seed).png == first.png


def test_steps_show_all_levels_and_end_with_the_picture() -> None:
    model = mdm.load("box:emoji", backend="torch")
    steps = list(model.steps("red heart", seed=3, steps=3))
    assert [(s.index, s.total) for s in steps] == [(0, 3), (1, 3), (2, 3)]
    assert steps[0].image.size[0] > 3 * 64
    assert steps[0]._repr_png_().startswith(b"\x89PNG")
    made = model("red heart", seed=3, steps=3)
    np.testing.assert_array_equal(steps[-1].levels[0], made.levels[0])


def test_progress_that_returns_false_stops_and_leaves_no_recipe() -> None:
    seen: list[StepPreview] = []

    def stop_after_two(step: StepPreview) -> bool:
        seen.append(step)
        return len(seen) < 2

    picture = mdm.load("box:emoji", backend="torch")(
        "red heart", seed=3, steps=4, progress=stop_after_two
    )
    assert len(seen) == 2
    assert picture.recipe is None
    np.testing.assert_array_equal(picture.levels[0], seen[-1].levels[0])


class Refusing:
    def __init__(self, word: str, whitest: float) -> None:
        self._word, self._whitest = word, whitest

    def refusal_of_prompt(self, prompt: str) -> str | None:
        return "it is rude" if self._word in prompt else None

    def refusal_of_picture(self, picture: Pixels) -> str | None:
        return "it is too bright" if picture.mean() > self._whitest else None


def test_filters_see_prompts_before_and_pictures_after(student: Model) -> None:
    assert student("red heart", seed=7, filters=[Refusing("blue", 256)]).recipe is not None
    with pytest.raises(FilteredError, match="'blue heart' was refused \\(it is rude\\)"):
        student("blue heart", seed=7, filters=[Refusing("blue", 256)])
    with pytest.raises(FilteredError, match="refused \\(it is too bright\\)"):
        student("red heart", seed=7, filters=[Refusing("blue", 10)])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("box:studnet", "did you mean box:student"),
        ("emoji", "did you mean box:emoji"),
        ("nowhere", "give a model folder, a bundle, or one of the box"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest_name(name: str, said: str) -> None:
    with pytest.raises(MdmError, match=said):
        mdm.load(name)


def test_a_student_refuses_in_one_sentence(student: Model) -> None:
    for asked, said in (
        ({"steps": 3}, "steps: this student takes 1, 2, 4"),
        ({"guidance": 99}, "guidance: this student learned"),
        ({"negative": "dog"}, "negative: a student takes no negative prompt"),
        ({"stop_at": 12}, "stop-at: this model has sides 64, 32, 16"),
    ):
        with pytest.raises(MdmError, match=said):
            student("red heart", **asked)  # type: ignore[call-overload]


def test_an_object_trains_resumes_and_samples(trained: Path) -> None:
    model = mdm.load(trained, backend="torch")
    assert model("red heart", seed=1, steps=2).levels[0].shape == (8, 8, 3)
    mdm.train(Stripes(), trained, steps=3, resume=True, backend="torch")
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2


def test_other_pictures_do_not_resume_a_run(trained: Path) -> None:
    class Others(Stripes):
        def picture(self, index: int, side: int) -> Image.Image:
            return Image.new("RGB", (side, side), "white")

    with pytest.raises(MdmError, match="was trained on other pictures"):
        mdm.train(Others(), trained, steps=4, resume=True, backend="torch")


def test_an_object_whose_pictures_have_another_shape_is_refused(tmp_path: Path) -> None:
    class Small(Stripes):
        def picture(self, index: int, side: int) -> Image.Image:
            return Image.new("RGB", (side - 1, side))

    with pytest.raises(MdmError, match=r"picture\(0, 8\) gave uint8 \(8, 7, 3\)"):
        mdm.train(Small(), tmp_path / "run", steps=1, config=trainable_model(), backend="torch")
    assert not (tmp_path / "run").exists()


def test_event_files_hold_the_numbers_of_the_metrics(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = trainable_model()
    mdm.train(Stripes(), out, steps=2, config=config, backend="torch", tensorboard=True)
    (events,) = (out / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"grad_norm" in data
    assert b"level_losses/1" in data
    assert (out / "metrics.jsonl").is_file()


def test_another_run_is_not_replaced_unless_asked(trained: Path, tmp_path: Path) -> None:
    config = trainable_model()
    before = (trained / "training.json").read_bytes()
    with pytest.raises(MdmError, match="pass overwrite=True"):
        mdm.train(Stripes(), trained, steps=1, config=config, backend="torch")
    assert (trained / "training.json").read_bytes() == before
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "sampling.json").write_text('{"sampler": "student", "steps": 1}')
    mdm.train(Stripes(), copy, steps=1, config=config, backend="torch", overwrite=True)
    assert (copy / "training.json").read_bytes() != before
    assert not (copy / "sampling.json").exists()  # it belonged to the model before


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"settings": TrainConfig(steps=3, seed=5)}, "seed: "),
        ({"preset": "emoji"}, "different model"),
    ],
)
def test_a_changed_run_is_not_resumed(trained: Path, changed: dict[str, Any], says: str) -> None:
    asked: dict[str, Any] = {"steps": 3} | changed
    if "settings" in changed:
        del asked["steps"]
    with pytest.raises(MdmError, match=says):
        mdm.train(Stripes(), trained, resume=True, backend="torch", **asked)


def test_a_run_starts_from_a_model_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(MdmError, match="did you mean box:emoji"):
        mdm.train(Stripes(), tmp_path / "a", steps=1, init="box:emojy")
    run = mdm.train(Stripes(), tmp_path / "b", steps=1, init="box:emoji", backend="torch")
    assert run.config.side == 64


def test_a_run_on_another_thread_is_a_run(tmp_path: Path) -> None:
    out, errors = tmp_path / "run", list[BaseException]()

    def work() -> None:
        try:
            mdm.train(Stripes(), out, steps=1, config=trainable_model(), backend="torch")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"sampler": "student2"}, "sampler: expected one of .* did you mean student"),
        ({"threshold": "clop"}, "threshold: expected one of"),
        ({"spacing": "odd"}, "spacing: expected one of"),
        ({"steps": 0}, "steps: expected 1 or more"),
        ({"n": 0}, "n: expected 1 to"),
        ({"n": -1}, "n: expected 1 to"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"seed": 2**32 - 1, "n": 2}, "seed: expected 0 to 4294967294"),
        ({"eta": 0.5}, "eta: a student has no use for it"),
        ({"spacing": "log_snr"}, "spacing: a student has no use for it"),
    ],
)
def test_words_of_a_call_are_checked(student: Model, words: dict[str, Any], says: str) -> None:
    with pytest.raises(MdmError, match=says):
        student("red heart", **words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"backend": "jax"}, "backend: expected one of torch, mlx"),
        ({"precision": "fp8"}, "precision: expected one of fp32, bf16"),
    ],
)
def test_words_of_loading_are_checked(words: dict[str, Any], says: str) -> None:
    with pytest.raises(MdmError, match=says):
        mdm.load("box:student", **words)


def test_a_model_is_scored_through_the_door(trained: Path, pictures: Path) -> None:
    model = mdm.load(trained, backend="torch")
    found = mdm.evaluate(model, pictures, count=4, settings=SampleSettings(steps=1))
    assert list(found.scores) == [0]


def test_a_bundle_is_opened_verified_and_compressed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert mdm.verify(tiny_bundle.path).passed
    small = mdm.palettize(tiny_bundle, tmp_path / "small.bundle", bits=4)
    assert small.report.bytes_after < small.report.bytes_before
    picture = mdm.load(small.bundle.path)("red heart", seed=1, steps=1)
    assert picture.recipe is not None
    assert (picture.recipe.backend, picture.recipe.precision) == ("reference", "fp16")
    picture.save(tmp_path / "a.png")
    assert read_recipe(tmp_path / "a.png") == picture.recipe


def test_a_folder_is_no_bundle_and_a_bundle_no_folder(
    tiny_bundle: Bundle, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(MdmError, match="is a model folder"):
        mdm.verify(model_folder)
    with pytest.raises(MdmError, match="is already a bundle"):
        mdm.convert(tiny_bundle.path, tmp_path / "again.bundle")
