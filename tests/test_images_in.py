"""Pictures in: starts, masks, margins, enlargements, and pictures near or between others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import MlxBackend, TorchBackend
from click.testing import CliRunner, Result
from PIL import Image
from small import save_random_model
from students import save_random_student

import mdm_apple as mdm
from mdm_apple.cli import group
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.types import Pixels
from mdm_apple.data.open import open_dataset
from mdm_apple.diffusion.noise import MixedNoise, NoiseStream
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.evaluation.evaluate_upscale import (
    UpscalePlan,
    bicubic,
    check_upscale,
    evaluate_upscale,
    scores_of,
)
from mdm_apple.evaluation.retrieval import as_images, drawn_captions, pool
from mdm_apple.given_pictures.margins import Margins
from mdm_apple.given_pictures.picture import PictureAsked, small_picture
from mdm_apple.model import Model
from mdm_apple.sampling.constraint import Averages, rings_around
from mdm_apple.sampling.generate import Prompt, evaluations, finish, generate
from mdm_apple.sampling.given_frames import NOTHING_GIVEN
from mdm_apple.sampling.given_picture import GivenPicture
from mdm_apple.sampling.pictures import read_recipe, to_pixels
from mdm_apple.sampling.walk import SamplerConfig, first_start, first_step

HEART = Prompt("red heart", 7)
SAMPLERS = [
    SamplerConfig("ddpm", 4),
    SamplerConfig("ddim", 4, eta=0.5, guidance_scale=2.0),
    SamplerConfig("dpmpp", 4, threshold="clip"),
]
FAST = ["--steps", "3", "--backend", "torch", "--quiet"]
NEAR = 8  # columns at each side of a seam that it is compared with


def noise(side: int = 16, seed: int = 0) -> Pixels:
    return np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8)


def below(picture: Pixels) -> Pixels:
    """The picture at half its side, added up in the order of a level's averages."""
    return to_pixels(pool(np.ascontiguousarray(as_images(picture[None])), len(picture) // 2))[0]


def right_half(side: int = 16) -> np.ndarray:
    free = np.zeros((side, side), bool)
    free[:, side // 2 :] = True
    return free


def painted(runtime: Any, sampler: SamplerConfig, given: Any = NOTHING_GIVEN) -> list[Pixels]:
    return [to_pixels(x)[0] for x in finish(generate(runtime, [HEART], sampler, None, given))]


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(group, [str(word) for word in words])


def made(*words: str | Path) -> list[Path]:
    result = command("sample", *FAST, "--json", *words)
    assert result.exit_code == 0, result.exception or result.output
    return [Path(name) for name in json.loads(result.stdout)["files"]]


def refusal(*words: str | Path) -> str:
    result = command(*words)
    assert result.exit_code
    return str(result.exception) if isinstance(result.exception, MdmError) else result.output


def pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(noise()).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    Image.fromarray(right_half()).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture(scope="module")
def runtime(model_folder: Path) -> Any:
    return TorchBackend().runtime(model_folder)


# --- from a noisy picture ---------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_strength_goes_from_the_picture_to_none(runtime: Any, sampler: SamplerConfig) -> None:
    kept, *others = (
        painted(runtime, sampler, GivenPicture(noise(), strength=s)) for s in (0, 0.25, 0.75, 1)
    )
    np.testing.assert_array_equal(kept[0], noise())
    np.testing.assert_array_equal(kept[1], below(noise()))
    free = painted(runtime, sampler)
    for whole, level in zip(others[-1], free, strict=True):
        np.testing.assert_array_equal(whole, level)
    distances = [np.abs(one[0].astype(int) - noise()).mean() for one in others]
    assert distances[0] < distances[1] < distances[2]


def test_as_many_steps_are_taken_as_strength_says(runtime: Any) -> None:
    assert [first_step(10, s) for s in (1, 0.6, 0.04, 0)] == [0, 4, 9, 10]
    for strength, harmonize in ((0.5, 0), (1.0, 2), (0.0, 0)):
        free = right_half() if harmonize else None
        given = GivenPicture(noise(), free, strength, harmonize)
        steps = list(generate(runtime, [HEART], SAMPLERS[0], None, given))
        assert len(steps) == evaluations(runtime.config, SAMPLERS[0], given)
        assert [(s.index, s.total) for s in steps] == [(k, len(steps)) for k in range(len(steps))]
        assert [s.final is not None for s in steps] == [False] * (len(steps) - 1) + [True]


def test_a_student_begins_where_it_learned_to(tmp_path: Path) -> None:
    model = dataclasses.replace(preset("tiny"), side=16)
    student = TorchBackend().runtime(save_random_student(tmp_path, 4, model))
    sampler = SamplerConfig("student", 4, guidance_scale=2.0)
    learned = student.config.distilled
    assert learned is not None
    assert [first_start(learned, s, 1000) for s in (1, 0.75, 0.5, 0.25, 0)] == [0, 1, 2, 3, 4]
    steps = [
        len(list(generate(student, [HEART], sampler, None, GivenPicture(noise(), None, s))))
        for s in (1.0, 0.5, 0.25, 0.0)
    ]
    assert steps == [4, 2, 1, 1]
    np.testing.assert_array_equal(
        painted(student, sampler, GivenPicture(noise(), None, 0.0))[0], noise()
    )
    with pytest.raises(ConfigError, match=r"begins at 1, 0\.75, 0\.5, 0\.25, 0 only, got 0\.6"):
        painted(student, sampler, GivenPicture(noise(), None, 0.6))
    half = painted(student, sampler, GivenPicture(noise(), right_half()))[0]
    np.testing.assert_array_equal(half[:, :8], noise()[:, :8])
    with pytest.raises(ConfigError, match="harmonize: a student jumps"):
        painted(student, sampler, GivenPicture(noise(), right_half(), harmonize=1))


# --- with a part of it kept -------------------------------------------------------------------


@pytest.mark.parametrize("backend", [TorchBackend, MlxBackend])
@pytest.mark.parametrize("harmonize", [0, 2])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_known_pixels_stay_to_the_byte(
    sampler: SamplerConfig, harmonize: int, backend: Callable[[], Any], model_folder: Path
) -> None:
    runtime = backend().runtime(model_folder)
    high, low = painted(runtime, sampler, GivenPicture(noise(), right_half(), harmonize=harmonize))
    np.testing.assert_array_equal(high[:, :8], noise()[:, :8])
    np.testing.assert_array_equal(low[:, :4], below(noise())[:, :4])
    assert np.abs(high[:, 8:].astype(int) - noise()[:, 8:]).mean() > 10
    free = painted(runtime, sampler)[0]  # the twin: nothing is kept
    assert np.abs(free[:, :8].astype(int) - noise()[:, :8]).mean() > 10


def test_kept_white_has_the_headroom_of_training_and_ends_in_range() -> None:
    config = dataclasses.replace(preset("tiny"), white_headroom=0.2)
    held, _ = GivenPicture(np.full((16, 16, 3), 255, np.uint8), right_half()).levels(config, 0)
    assert held.known.max() == pytest.approx(1.2)  # type: ignore[union-attr]
    assert held.finished(np.zeros((1, 3, 16, 16), np.float32)).max() == 1


def test_what_is_kept_leads_the_rest(runtime: Any) -> None:
    one, other = (
        painted(runtime, SAMPLERS[2], GivenPicture(noise(seed=s), right_half()))[0][:, 8:]
        for s in (0, 1)
    )
    assert np.abs(one.astype(int) - other).mean() > 2


def test_a_mask_is_averaged_for_each_level() -> None:
    free = np.zeros((16, 16), bool)
    free[:, 7:] = True
    high, low = GivenPicture(noise(), free).levels(preset("tiny"), 0)
    assert set(np.unique(high.free)) == {0, 1}  # type: ignore[union-attr]
    assert low.free[0, 0, 0].tolist() == [0, 0, 0, 0.5, 1, 1, 1, 1]  # type: ignore[union-attr]
    assert low.fixed[0, 0, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]  # type: ignore[union-attr]


def test_what_an_estimate_lacks_is_carried_over_the_seam() -> None:
    """An estimate that is too dark everywhere meets the kept half without a step."""
    free = right_half(32)
    given = GivenPicture(np.full((32, 32, 3), 255, np.uint8), free)
    config = dataclasses.replace(preset("tiny"), side=32)
    held, _ = given.levels(config, 0)
    dark = np.zeros((1, 3, 32, 32), np.float32)
    steps = np.abs(np.diff(held.estimate(dark, NumpyOps()), axis=3)).max(axis=(0, 1, 2))
    assert steps[15] == pytest.approx(0.2, abs=1e-6)
    assert steps.max() == pytest.approx(0.2, abs=1e-6)
    plain = dataclasses.replace(held, rings=())  # type: ignore[arg-type]
    assert np.abs(np.diff(plain.estimate(dark, NumpyOps()), axis=3)).max() == 1  # type: ignore[union-attr]


def test_rings_lie_around_what_is_fixed() -> None:
    fixed = np.zeros((1, 1, 7, 7), np.float32)
    fixed[..., 3, 3] = 1
    rings = rings_around(fixed, 9)
    assert [int((ring > 0).sum()) for ring in rings] == [8, 16, 24]
    values = fixed
    for ring in rings:
        values = values + NumpyOps().smooth(values) * ring
    np.testing.assert_allclose(values, 1, atol=1e-6)


def ratio_at_seam(pictures: Pixels) -> float:
    """Mean gradient across the middle, over that of the columns near it."""
    middle = pictures.shape[2] // 2 - 1
    steps = np.abs(np.diff(pictures.astype(float), axis=2)).mean(axis=(0, 1, 3))
    near = np.delete(steps[middle - NEAR : middle + NEAR + 1], NEAR)
    return float(steps[middle] / near.mean())


@pytest.mark.slow
def test_a_seam_is_no_steeper_than_one_and_a_half_times_what_is_beside_it() -> None:
    """The right half of 16 emoji, with --harmonize 3; the twin keeps no estimate near the seam."""
    data = open_dataset("twemoji", 64)
    items = [data.item(int(row)) for row in drawn_captions(len(data), 16, 0)]
    emoji = mdm.load("box:emoji", backend="torch").runtime
    sampler = SamplerConfig("dpmpp", 15, guidance_scale=1.5)
    ratios = list[float]()
    for given in (
        lambda p: GivenPicture(p, right_half(64), harmonize=3),
        lambda p: WithoutRings(p, right_half(64)),
    ):
        out = [
            to_pixels(
                finish(generate(emoji, [Prompt(i.caption, k)], sampler, None, given(i.image)))[0]
            )[0]
            for k, i in enumerate(items)
        ]
        ratios.append(ratio_at_seam(np.stack(out)))
    assert ratios[0] <= 1.5 < ratios[1]


class WithoutRings(GivenPicture):
    """A kept part that the rest learns of from the network alone."""

    def levels(self, config: ModelConfig, first_level: int) -> list[Any]:
        levels: list[Any] = [*super().levels(config, first_level)]
        return [dataclasses.replace(level, rings=()) for level in levels]


# --- margins ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margins", "own", "left", "top"),
    [
        ("4,0,0,0", 16, 4, 0),
        ("0,0,4,0", 16, -4, 0),
        ("0,5,0,0", 16, 0, 5),
        ("2,3,0,0", 16, 2, 3),
        ("4,0,4,0", 8, 4, 4),
        ("4,2,2,2", 10, 4, 3),
        ("0,3,0,5", 8, 4, 3),
    ],
)
def test_margins_move_a_picture_or_reduce_it(margins: str, own: int, left: int, top: int) -> None:
    canvas, free = Margins.of(margins).around(noise())
    rows, columns = np.nonzero(~free)
    assert (rows.min(), columns.min()) == (max(top, 0), max(left, 0))
    assert (rows.max(), columns.max()) == (min(top + own, 16) - 1, min(left + own, 16) - 1)
    if own == 16:  # nothing is filtered
        back = np.roll(canvas, (-top, -left), axis=(0, 1))
        kept = np.roll(~free, (-top, -left), axis=(0, 1))
        np.testing.assert_array_equal(back[kept], noise()[kept])


def test_margins_that_say_nothing_or_leave_nothing_are_refused() -> None:
    for text, said in (
        ("0,0,0,0", "all margins are 0"),
        ("1,2,3", "expected left,top,right,bottom"),
        ("-1,0,0,0", "expected left,top,right,bottom"),
        ("8,0,8,0", "leaves nothing of a picture of 16 px"),
        ("16,0,0,0", "leaves nothing"),
    ):
        with pytest.raises(ConfigError, match=said):
            Margins.of(text).around(noise())


# --- enlarging --------------------------------------------------------------------------------


def test_estimates_get_the_known_averages_and_stay_in_range() -> None:
    random = np.random.RandomState(0)
    averages = random.uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32)
    averages[0, :, 0] = 1, -1, 0.999, -0.999
    held = Averages(averages, np.zeros_like(averages), 4)
    for spread in (0.0, 0.5, 3.0, 50.0):
        x0 = (random.standard_normal((2, 3, 16, 16)) * spread).astype(np.float32)
        out = held.estimate(x0, NumpyOps())
        assert np.abs(out).max() <= 1 + 1e-6
        assert np.abs(pool(out, 4) - averages).max() < 2e-6
    near = averages.repeat(4, axis=2).repeat(4, axis=3) * 0.5
    wanted = near + (averages - pool(near, 4)).repeat(4, axis=2).repeat(4, axis=3)
    np.testing.assert_allclose(held.estimate(near, NumpyOps()), wanted, atol=1e-5)


@pytest.mark.parametrize("backend", [TorchBackend, MlxBackend])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_an_enlarged_picture_pools_back(
    sampler: SamplerConfig, backend: Callable[[], Any], model_folder: Path
) -> None:
    runtime = backend().runtime(model_folder)
    small = noise(8)
    small[:2], small[2:4] = 255, 0
    high, low = painted(runtime, sampler, GivenPicture(small))
    np.testing.assert_array_equal(low, small)
    assert gap(high, small) <= 1
    assert gap(painted(runtime, sampler)[0], small) > 50  # the twin


def gap(large: Pixels, small: Pixels) -> float:
    """How far a picture, averaged, is from a small one, in steps of a byte."""
    pooled = pool(large.transpose(2, 0, 1)[None].astype(np.float32), small.shape[0])
    return float(np.abs(pooled[0].transpose(1, 2, 0) - small).max())


def test_all_levels_between_pool_back_and_white_keeps_its_headroom() -> None:
    config = dataclasses.replace(preset("emoji"), white_headroom=0.2)
    small = noise(16)
    small[0, 0] = 255
    top, middle, low = GivenPicture(small).levels(config, 0)
    assert (top.factor, middle.factor) == (4, 2)  # type: ignore[union-attr]
    assert low.known.max() == pytest.approx(1.2)  # type: ignore[union-attr]
    x0 = np.zeros((1, 3, 64, 64), np.float32)
    out = top.estimate(x0, NumpyOps())
    np.testing.assert_allclose(out[0, :, :4, :4], 1.2, atol=1e-6)
    assert top.finished(x0).max() <= 1


def test_the_side_of_a_small_picture_names_its_level() -> None:
    config = preset("emoji")
    assert small_picture(config, None, Image.new("RGB", (32, 32))).side == 32
    assert small_picture(config, 32, Image.new("RGB", (16, 16))).side == 16
    assert small_picture(config, None, Image.new("RGB", (50, 70)), resize=True).side == 32
    assert small_picture(config, None, Image.new("RGB", (900, 900)), resize=True).side == 32
    for size, to, resize, said in (
        ((50, 50), None, False, "50 px is none of 16, 32, 64; give --resize"),
        ((16, 32), None, False, "16x32 px is none of"),
        ((64, 64), None, False, "what --to 64 makes already"),
        ((32, 32), 32, False, "what --to 32 makes already"),
        ((9, 9), None, True, "is less than"),
    ):
        with pytest.raises(MdmError, match=said):
            small_picture(config, to, Image.new("RGB", size), resize=resize)
    with pytest.raises(MdmError, match="makes clips"):
        small_picture(preset("motion"), None, Image.new("RGB", (16, 16)))


def test_scores_of_enlargements_know_the_real_ones_from_soft_and_from_wrong_ones() -> None:
    real = [noise(32, k).repeat(2, 0).repeat(2, 1) for k in range(6)]
    small = [to_pixels(pool(as_images(r[None]), 16))[0] for r in real]
    soft = [bicubic(s, 64) for s in small]
    perfect = scores_of(list(zip(real, soft, real, strict=True)), 0.0)
    assert perfect.psnr == 100
    assert perfect.detail == pytest.approx(0, abs=1e-9)
    assert perfect.bicubic_detail > 0.1
    other = [noise(64, 50 + k) for k in range(6)]
    wrong = scores_of(list(zip(real, soft, other, strict=True)), 0.0)
    assert wrong.psnr < perfect.bicubic_psnr
    assert wrong.detail > 0.1


def test_a_model_is_scored_by_what_it_enlarges(runtime: Any) -> None:
    data = open_dataset("twemoji", 16)
    plan = UpscalePlan(SAMPLERS[2], 8, count=4)
    found = evaluate_upscale(runtime, data, plan)
    assert found.scores[0].pools_back <= 1
    assert found.scores[0].bicubic_psnr > found.scores[0].psnr  # its weights are random
    assert [three[0].shape for three in found.shown] == [(16, 16, 3)] * 4
    with pytest.raises(MdmError, match=r"a level below the pictures \(8\), got 16"):
        check_upscale(runtime.config, 16, None)


# --- near and between others ------------------------------------------------------------------


def test_noise_between_two_seeds_keeps_its_spread_and_both_ends() -> None:
    def draws(share: float) -> np.ndarray:
        return MixedNoise(NoiseStream(1, (32,)), NoiseStream(2, (32,)), share).draw()[0]

    np.testing.assert_array_equal(draws(0), NoiseStream(1, (32,)).draw()[0])
    np.testing.assert_array_equal(draws(1), NoiseStream(2, (32,)).draw()[0])
    assert draws(0.5).std() == pytest.approx(1, abs=0.05)


def test_pictures_lie_between_two_prompts_and_seeds(model_folder: Path) -> None:
    model = mdm.load(model_folder, backend="torch")
    way = model.between("red heart", "blue heart", frames=5, seed=1, to_seed=2, steps=3)
    ends = model("red heart", seed=1, steps=3), model("blue heart", seed=2, steps=3)
    frames = [picture.levels[0].astype(int) for picture in way]
    for frame, end in ((frames[0], ends[0]), (frames[-1], ends[1])):
        assert np.abs(frame - end.levels[0]).max() <= 1  # a batch rounds in another order
    whole = np.abs(frames[0] - frames[-1]).mean()
    assert all(0 < np.abs(a - b).mean() < whole for a, b in pairwise(frames))


def test_a_variation_moves_from_the_picture_to_another_seeds(
    model_folder: Path, tmp_path: Path
) -> None:
    model = mdm.load(model_folder, backend="torch")
    first = model("red heart", seed=1, steps=3)
    first.save(tmp_path / "first.png")
    same, near, other = (
        model.vary(tmp_path / "first.png", amount, seed=2)[0] for amount in (0, 0.3, 1)
    )
    np.testing.assert_array_equal(same.levels[0], first.levels[0])
    np.testing.assert_array_equal(other.levels[0], model("red heart", seed=2, steps=3).levels[0])
    apart = [np.abs(p.levels[0].astype(int) - first.levels[0]).mean() for p in (near, other)]
    assert 0 < apart[0] < apart[1]
    options = ["--vary", tmp_path / "first.png", "--count", "2", "--seed", "2", "--model"]
    files = made(*options, model_folder, "--out", tmp_path / "all")
    np.testing.assert_array_equal(pixels(files[0]), near.levels[0])
    assert read_recipe(files[0]) == near.recipe
    (again,) = made("--like", files[1], "--model", model_folder, "--out", tmp_path / "again.png")
    assert again.read_bytes() == files[1].read_bytes()
    with pytest.raises(MdmError, match="already lies between two"):
        model.vary(files[0], 0.3)


# --- the command, Python and recipes ----------------------------------------------------------


@pytest.fixture
def whole(model_folder: Path) -> list[str | Path]:
    return ["red heart", "--seed", "7", "--model", model_folder]


def test_strength_one_is_byte_equal_to_no_picture(
    whole: list[str | Path], picture: Path, tmp_path: Path
) -> None:
    (none,) = made(*whole, "--out", tmp_path / "none.png")
    (one,) = made(*whole, "--image", picture, "--strength", "1", "--out", tmp_path / "one.png")
    (zero,) = made(*whole, "--image", picture, "--strength", "0", "--out", tmp_path / "zero.png")
    assert one.read_bytes() == none.read_bytes()
    np.testing.assert_array_equal(pixels(zero), noise())


@pytest.mark.parametrize(
    "how",
    [
        ["--strength", "0.5"],
        ["--mask", "mask.png", "--harmonize", "1"],
        ["--mask", "mask.png", "--strength", "0.7"],
        ["--extend", "4,0,4,0"],
    ],
    ids=" ".join,
)
def test_like_needs_the_same_picture_again(
    how: list[str],
    whole: list[str | Path],
    picture: Path,
    mask: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (first,) = made(*whole, "--image", picture, *how, "--out", "first.png")
    like = ["--like", first, *whole[-2:], "--out", "again.png"]
    masks = how[:2] if how[0] == "--mask" else []
    assert "give it again with --image" in refusal("sample", *FAST, *like)
    Image.fromarray(noise(seed=1)).save(tmp_path / "other.png")
    said = refusal("sample", *FAST, *like, "--image", "other.png", *masks)
    assert "is another picture than first.png was made from" in said
    (again,) = made(*like, "--image", picture, *masks)
    assert again.read_bytes() == first.read_bytes()
    if masks:
        assert "give it again with --mask" in refusal("sample", *FAST, *like, "--image", picture)


def test_python_makes_what_the_command_makes(
    whole: list[str | Path], model_folder: Path, picture: Path, mask: Path, tmp_path: Path
) -> None:
    model = mdm.load(model_folder, backend="torch")
    how = ["--image", picture, "--mask", mask, "--harmonize", "1"]
    (file,) = made(*whole, *how, "--out", tmp_path / "a.png")
    picture_made = model(
        "red heart", seed=7, steps=3, image=noise_image(), mask=Image.open(mask), harmonize=1
    )
    assert picture_made.png == file.read_bytes()
    *_, last = model.steps("red heart", seed=7, steps=3, image=picture, mask=mask, harmonize=1)
    np.testing.assert_array_equal(last.levels[0], picture_made.levels[0])


def noise_image() -> Image.Image:
    return Image.fromarray(noise())


def test_upscale_makes_a_file_that_like_repeats(model_folder: Path, tmp_path: Path) -> None:
    Image.fromarray(noise(8)).save(tmp_path / "small.png")
    asked = ["upscale", tmp_path / "small.png", "--prompt", "red heart", "--seed", "3"]
    asked += ["--model", model_folder, *FAST, "--out", tmp_path / "large.png"]
    result = command(*asked)
    assert result.exit_code == 0, result.exception
    assert gap(pixels(tmp_path / "large.png"), noise(8)) <= 1
    assert "add --overwrite" in refusal(*asked)
    model: Model = mdm.load(model_folder, backend="torch")
    large = model.upscale(Image.fromarray(noise(8)), "red heart", seed=3, steps=3)
    assert large.png == (tmp_path / "large.png").read_bytes()
    like = ["--like", tmp_path / "large.png", "--model", model_folder]
    like += ["--image", tmp_path / "small.png", "--out", tmp_path / "again.png"]
    (again,) = made(*like)
    assert again.read_bytes() == large.png


def test_a_picture_is_seen_as_its_centre_and_upright(tmp_path: Path) -> None:
    wide = np.concatenate([noise(16, 1), noise(16, 0), noise(16, 2)], axis=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(wide)  # a viewer turns it back
    Image.fromarray(turned).save(tmp_path / "turned.png", exif=exif)
    given = PictureAsked(tmp_path / "turned.png", 0.5).given(preset("tiny"), None)
    assert given is not None
    np.testing.assert_array_equal(given.pixels, noise(16, 0))


def test_a_transparent_picture_needs_a_background(tmp_path: Path) -> None:
    clear = np.dstack([noise(), np.full((16, 16), 255, np.uint8)])
    full = PictureAsked(Image.fromarray(clear), 0.5).given(preset("tiny"), None)
    assert full is not None
    np.testing.assert_array_equal(full.pixels, noise())
    clear[:, :8, 3] = 0
    with pytest.raises(MdmError, match="say what is behind it with --background"):
        PictureAsked(Image.fromarray(clear)).given(preset("tiny"), None)
    on_blue = PictureAsked(Image.fromarray(clear), background="#0000ff").given(preset("tiny"), None)
    assert on_blue is not None
    assert (on_blue.pixels[:, :8] == (0, 0, 255)).all()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (PictureAsked(mask=noise_image()), "mask: belongs to a picture; give --image"),
        (PictureAsked(strength=0.5), "strength: belongs to a picture"),
        (PictureAsked(noise_image(), 1.5), "strength: expected 0 to 1"),
        (PictureAsked(noise_image(), float("nan")), "strength: expected 0 to 1"),
        (PictureAsked(noise_image(), mask=noise_image(), extend="1,0,0,0"), "give one"),
        (PictureAsked(noise_image(), harmonize=2), "give --mask or --extend"),
        (PictureAsked(noise_image(), background="nocolor"), "is no color"),
        (PictureAsked(Image.new("L", (4097, 2))), "expected up to 4096 a side"),
        (PictureAsked(noise_image(), mask=Image.new("L", (8, 16))), "of the same size"),
        (PictureAsked(noise_image(), mask=Image.new("L", (16, 16))), "no white in it"),
        (PictureAsked("missing.png"), "no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(asked: PictureAsked, says: str) -> None:
    with pytest.raises(MdmError, match=says):
        asked.given(preset("tiny"), None)


def test_options_that_do_not_belong_together_are_refused(
    whole: list[str | Path], picture: Path, tmp_path: Path
) -> None:
    sample = ["sample", *FAST]
    for words, said in (
        ([*whole, "--count", "2"], "count: belongs to --vary"),
        ([*whole, "--to-seed", "2"], "to-seed: belongs to --between"),
        ([*whole, "--between", "a", "b"], "leave out PROMPT"),
        ([*whole, "--seeds", "1-2"], "--seed and --seeds say the same"),
        (["--vary", picture], "carries no recipe"),
        (["--between", "a", "b", "--seeds", "1-2"], "begins with one seed"),
        ([*whole[:1], "--image", picture, "--out", tmp_path / "a.jpg"], "written as .png"),
    ):
        assert said in refusal(*sample, *words)
    clips = save_random_model(tmp_path / "clips", preset("tiny_video"))
    said = refusal(*sample, "cat", "--model", clips, "--image", picture)
    assert "give it as --first-frame" in said
