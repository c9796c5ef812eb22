"""A model that makes pictures, as `mdm.load` returns it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict, Unpack, cast, overload

from mdm_apple.clip_file.timing import check_fps
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Images, Pixels, Precision
from mdm_apple.diffusion.canvas import untiled
from mdm_apple.diffusion.noise import MAX_SEED
from mdm_apple.errors import MdmError
from mdm_apple.given_pictures.frames import FramePicture, given_frames
from mdm_apple.given_pictures.picture import (
    InPicture,
    PictureAsked,
    PictureWords,
    small_picture,
)
from mdm_apple.open_model import Backend, Loaded, Opening
from mdm_apple.sampling.between import arc, between
from mdm_apple.sampling.filters import Filter, check_pictures, check_prompts
from mdm_apple.sampling.generate import Given, Prompt, check_given, generate, random_seed
from mdm_apple.sampling.given_frames import NOTHING_GIVEN, GivenFrames, sha256_of
from mdm_apple.sampling.inner_model import Level, level_of_side, require_clip, side_of_level
from mdm_apple.sampling.picture import Picture, StepPreview
from mdm_apple.sampling.pictures import Recipe, read_recipe, to_pixels
from mdm_apple.sampling.remarks import unread
from mdm_apple.sampling.settings import SampleSettings, SettingWords
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.version import __version__

MAX_PICTURES = 1 << 16  # of one call
Progress = Callable[[StepPreview], bool | None]


class Words(SettingWords, PictureWords, total=False):
    """Keywords of a call: settings of sampling, and a picture to start from."""


class Model:
    """A model that makes pictures: `model("red heart", seed=7)`."""

    def __init__(self, opening: Opening, loaded: Loaded) -> None:
        self.name, self.config = opening.named.name, opening.config
        self.backend: Backend = opening.backend
        self.precision: Precision = opening.precision
        self.runtime, self.sha256 = loaded.runtime, loaded.sha256
        self.quantized = loaded.quantized
        self._opening = opening

    @overload
    def __call__(
        self,
        prompt: str,
        *,
        n: None = None,
        seed: int | None = None,
        negative: str = "",
        progress: Progress | None = None,
        filters: Sequence[Filter] = (),
        first_frame: FramePicture | None = None,
        last_frame: FramePicture | None = None,
        fps: float | None = None,
        stop_at: Level | None = None,
        **words: Unpack[Words],
    ) -> Picture: ...

    @overload
    def __call__(
        self,
        prompt: str,
        *,
        n: int,
        seed: int | None = None,
        negative: str = "",
        progress: Progress | None = None,
        filters: Sequence[Filter] = (),
        first_frame: FramePicture | None = None,
        last_frame: FramePicture | None = None,
        fps: float | None = None,
        stop_at: Level | None = None,
        **words: Unpack[Words],
    ) -> list[Picture]: ...

    def __call__(
        self,
        prompt: str,
        *,
        n: int | None = None,
        seed: int | None = None,
        negative: str = "",
        progress: Progress | None = None,
        filters: Sequence[Filter] = (),
        first_frame: FramePicture | None = None,
        last_frame: FramePicture | None = None,
        fps: float | None = None,
        stop_at: Level | None = None,
        **words: Unpack[Words],
    ) -> Picture | list[Picture]:
        """Make one picture, or a list of `n` with consecutive seeds.

        Args:
            n: 1 to 65,536. seed: 0 to 2**32 - n; None draws one, which the recipe records.
            words: steps, sampler, guidance and so on; whatever is left out suits the model. image,
                strength, mask, extend, harmonize, background: see `PictureAsked`.
            progress: sees every step of the first picture; if it returns False, sampling stops and
                the pictures are the clean estimates so far, without a recipe.
            filters: see `mdm_apple.sampling.filters`.
            first_frame, last_frame: pictures that a clip is to begin and end with: files, or
                images of Pillow. Of a clip's file, the first frame goes on where it ends, and the
                last frame leads to where it begins. fps: frames a second of a clip.
            stop_at: highest level to run: its side for pictures (32), frames and side of clips
                ("16x16").

        Warns if the model does not see all of the text. Raises MdmError for what it cannot do.
        """
        in_range("n", n, 1, MAX_PICTURES)
        count = n or 1
        in_range("seed", seed, 0, MAX_SEED + 1 - count)
        asked, picture = _apart(words, side_of_level(self.config, stop_at))
        first = random_seed(count) if seed is None else seed
        prompts = [Prompt(prompt, first + k, negative) for k in range(count)]
        self._opening.check(asked, prompts)
        self._warn(prompts[0])
        given = self._given(asked, picture, first_frame, last_frame)
        made = list(
            self.pictures(prompts, asked, progress=progress, filters=filters, given=given, fps=fps)
        )
        return made[0] if n is None else made

    def steps(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        negative: str = "",
        filters: Sequence[Filter] = (),
        first_frame: FramePicture | None = None,
        last_frame: FramePicture | None = None,
        stop_at: Level | None = None,
        **words: Unpack[Words],
    ) -> Iterator[StepPreview]:
        """Yield every step of one picture as it is made; the last one is the picture."""
        asked, picture = _apart(words, side_of_level(self.config, stop_at))
        prompts = [Prompt(prompt, random_seed() if seed is None else seed, negative)]
        config = self._check(asked, prompts, filters)
        given = self._given(asked, picture, first_frame, last_frame)
        self._warn(prompts[0])
        for step in generate(self.runtime, prompts, config, asked.stop_at, given):
            levels = step.final or step.x0
            shown = _preview(step.index, step.total, levels)
            check_pictures(filters, self._frames(levels, asked.stop_at))
            yield shown

    def pictures(
        self,
        prompts: Sequence[Prompt],
        settings: SampleSettings,
        *,
        batch_size: int = 8,
        preview_every: int | None = None,
        progress: Progress | None = None,
        filters: Sequence[Filter] = (),
        given: Given = NOTHING_GIVEN,
        fps: float | None = None,
    ) -> Iterator[Picture]:
        """Yield a picture or clip for each prompt, in order, as soon as its batch is done.

        Args:
            preview_every: keep all levels each time this many steps are done, and at the end.
            progress: sees the first picture of each batch at every step; False stops all.
            given: frames that every clip is to have, or a picture to start from. fps: frames a
                second of clips.
        """
        config = self._check(settings, prompts, filters)
        check_given(self.config, config, settings.stop_at, given)
        require_clip(self.config, settings.stop_at, {"fps": fps})
        check_fps(fps)
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            shown: list[list[Pixels]] = []
            stopped, levels = False, list[Images]()
            for step in generate(self.runtime, batch, config, settings.stop_at, given):
                levels = step.final or step.x0
                if preview_every and step.index % preview_every == 0:
                    shown.append([to_pixels(level) for level in step.x0])
                if preview_every and step.final:
                    shown.append([to_pixels(level) for level in step.final])
                if filters:
                    check_pictures(filters, self._frames(levels, settings.stop_at))
                if progress and progress(_preview(step.index, step.total, levels)) is False:
                    stopped = step.final is None
                    break
            pixels = [to_pixels(level) for level in levels]
            for k, prompt in enumerate(batch):
                recipe = self.recipe(prompt, config, settings.stop_at, given, fps)
                yield Picture(
                    tuple(level[k] for level in pixels),
                    None if stopped else recipe,
                    tuple(tuple(level[k] for level in step) for step in shown),
                    self._frame_counts(settings.stop_at),
                    self._fps(settings.stop_at, fps),
                )
            if stopped:
                return

    def sampler_config(self, settings: SampleSettings) -> SamplerConfig:
        """The sampler for these settings and this model. Raises ConfigError."""
        return self._opening.check(settings, ())

    def recipe(
        self,
        prompt: Prompt,
        sampler: SamplerConfig,
        stop_at: int | None,
        given: Given = NOTHING_GIVEN,
        fps: float | None = None,
    ) -> Recipe:
        """How to make a picture or clip again: `mdm sample --like FILE`."""
        count = self._frame_counts(stop_at)[0]
        return Recipe(
            prompt=prompt.text,
            negative=prompt.negative,
            seed=prompt.seed,
            sampler=sampler.kind,
            steps=sampler.num_steps,
            eta=sampler.eta,
            guidance=sampler.guidance_scale,
            threshold=sampler.threshold,
            grid=sampler.spacing,
            stop_at=stop_at,
            model=self.sha256,
            backend=self.backend,
            precision=self.precision,
            version=__version__,
            quantize=self._opening.options.quantize,
            frames=count if count > 1 else None,
            fps=self._fps(stop_at, fps),
            to_prompt=prompt.to_text,
            to_seed=prompt.to_seed,
            share=None if prompt.to_text is None and prompt.to_seed is None else prompt.share,
            **self._of_given(given, stop_at),
        )

    def _of_given(self, given: Given, stop_at: int | None) -> GivenWords:
        """What a recipe says of frames or a picture that were given."""
        if isinstance(given, GivenFrames):
            return {"first_frame": sha256_of(given.first), "last_frame": sha256_of(given.last)}
        highest = self.config.sides[level_of_side(self.config, stop_at)]
        return {
            "image": given.sha256,
            "mask": given.mask_sha256,
            "strength": given.strength,
            "extend": given.extend,
            "harmonize": given.harmonize or None,
            "level": given.side if given.side < highest else None,
        }

    def upscale(
        self,
        image: InPicture,
        prompt: str = "",
        *,
        to: int | None = None,
        resize: bool = False,
        background: str | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
        **settings: Unpack[SettingWords],
    ) -> Picture:
        """Enlarge a small picture, whose side names its level.

        The result pools back to the picture, within 1/255.

        Args:
            to: the side to make; None for the model's. resize: reduce a picture of another size to
                the largest level below `to`. background: behind what is transparent.
        """
        asked = SampleSettings(stop_at=to, **settings)
        prompts = [Prompt(prompt, random_seed() if seed is None else seed)]
        self._opening.check(asked, prompts)
        given = small_picture(self.config, to, image, resize=resize, background=background)
        self._warn(prompts[0])
        return next(self.pictures(prompts, asked, progress=progress, given=given))

    def vary(
        self,
        picture: str | Path | Recipe,
        amount: float,
        *,
        n: int = 1,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> list[Picture]:
        """Variations of a picture that was made here: its noise moves towards that of other seeds.

        Args:
            picture: the file, or the recipe of a picture without an input. amount: 0 is the same
                picture, 1 that of the other seed. n: variations, towards consecutive seeds.
        """
        recipe = picture if isinstance(picture, Recipe) else read_recipe(Path(picture))
        in_range("n", n, 1, MAX_PICTURES)
        in_range("seed", seed, 0, MAX_SEED + 1 - n)
        first = random_seed(n) if seed is None else seed
        prompts = [arc(recipe, amount, first + k) for k in range(n)]
        if recipe.image is not None or recipe.first_frame is not None or recipe.last_frame:
            raise MdmError("vary: that picture was made from another one; vary one that was not.")
        return list(self.pictures(prompts, SampleSettings.of(recipe), progress=progress))

    def between(
        self,
        one: str,
        other: str,
        *,
        frames: int = 9,
        seed: int | None = None,
        to_seed: int | None = None,
        stop_at: Level | None = None,
        progress: Progress | None = None,
        **settings: Unpack[SettingWords],
    ) -> list[Picture]:
        """Pictures on the way from one prompt to another; the first and the last are their own.

        Args:
            frames: 2 or more, both ends counted. to_seed: the noise moves as well, towards this.
        """
        asked = SampleSettings(stop_at=side_of_level(self.config, stop_at), **settings)
        first = random_seed() if seed is None else seed
        prompts = between(one, other, frames, first, to_seed)
        self._opening.check(asked, prompts)
        return list(self.pictures(prompts, asked, progress=progress))

    def used_memory(self) -> dict[str, float]:
        """Peak memory of MLX and its limit, in gigabytes; other backends do not measure it."""
        if self.backend != "mlx":
            return {}
        from mdm_apple.mlx.memory import memory_limit, peak_memory

        limit = self._opening.options.memory_limit
        allowed = memory_limit() if limit is None else limit
        return {"peak_memory_gb": peak_memory(), "memory_limit_gb": allowed}

    def _check(
        self, settings: SampleSettings, prompts: Sequence[Prompt], filters: Sequence[Filter]
    ) -> SamplerConfig:
        check_prompts(filters, [p.text for p in prompts])
        return self._opening.check(settings, prompts)

    def _given(
        self,
        asked: SampleSettings,
        picture: PictureAsked,
        first: FramePicture | None,
        last: FramePicture | None,
    ) -> Given:
        """The frames of a clip, or the picture, that a call was given. Raises MdmError."""
        frames = given_frames(self.config, asked.stop_at, first, last)
        given = picture.given(self.config, asked.stop_at)
        return frames if given is None else given

    def _warn(self, prompt: Prompt) -> None:
        """Warn of what the model does not see, where `__call__` or `steps` was called."""
        encoder = self._opening.options.text_encoder
        for remark in unread(self._opening.named.path, self.config, [prompt], encoder):
            warnings.warn(remark, stacklevel=3)

    def _frame_counts(self, stop_at: int | None) -> tuple[int, ...]:
        """Frames of each level that runs; 1 for pictures."""
        shapes = self.config.clip_shapes[level_of_side(self.config, stop_at) :]
        return tuple(frames for frames, _ in shapes)

    def _fps(self, stop_at: int | None, asked: float | None) -> float | None:
        """Frames a second, unless a single picture is made."""
        if self._frame_counts(stop_at)[0] == 1:
            return None
        return self.config.fps if asked is None else asked

    def _frames(self, levels: Sequence[Images], stop_at: int | None) -> list[Pixels]:
        """The pictures and frames of a batch at all levels, as a filter sees them."""
        return [
            frame
            for level, count in zip(levels, self._frame_counts(stop_at), strict=True)
            for row in to_pixels(level)
            for frame in untiled(row, count)
        ]


class GivenWords(TypedDict, total=False):
    """Fields of a recipe about what was given."""

    first_frame: str | None
    last_frame: str | None
    image: str | None
    mask: str | None
    strength: float | None
    extend: str | None
    harmonize: int | None
    level: int | None


def _apart(words: Words, stop_at: int | None) -> tuple[SampleSettings, PictureAsked]:
    """The settings of sampling, and what a call says of a picture. Refuses unknown words."""
    picture = {k: v for k, v in words.items() if k in PictureWords.__annotations__}
    settings = {k: v for k, v in words.items() if k not in picture}
    return (
        SampleSettings(stop_at=stop_at, **cast(SettingWords, settings)),
        PictureAsked(**cast(PictureWords, picture)),
    )


def _preview(index: int, total: int, levels: Sequence[Images]) -> StepPreview:
    return StepPreview(index, total, tuple(to_pixels(level[:1])[0] for level in levels))
