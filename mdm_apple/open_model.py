"""A model by its name, opened on a backend and ready to make pictures.

Whatever can be refused from the name, the configuration and the request is refused before any
framework is imported.
"""

from __future__ import annotations

import difflib
import importlib.util
import platform
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, overload

from mdm_apple.bundled_models import NamedModel
from mdm_apple.config.model import ModelConfig, Threshold
from mdm_apple.config.types import Bits, Images, Pixels, Precision
from mdm_apple.diffusion.schedule import Spacing
from mdm_apple.errors import MdmError, require, require_installed
from mdm_apple.sampling.filters import Filter, check_pictures, check_prompts
from mdm_apple.sampling.generate import Prompt, Runtime, check_request, generate
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.picture import Picture, StepPreview
from mdm_apple.sampling.pictures import Recipe, to_pixels
from mdm_apple.sampling.settings import SampleSettings, SamplingDefaults, read_sampling
from mdm_apple.sampling.walk import SamplerConfig, SamplerKind
from mdm_apple.storage.model_folder import load_model_config, weights_sha256
from mdm_apple.text.captions import CAPTIONS, clean_caption, read_captions
from mdm_apple.version import __version__

Backend = Literal["torch", "mlx", "coreml", "reference"]
MAX_LISTED_BYTES = 4 << 20  # bytes; prompts are not compared with a longer list of captions
LARGEST_SEED = 2**32 - 1
BUNDLE_PACKAGES = ("torch", "coremltools", "jsonschema")


@dataclass(frozen=True)
class OpenOptions:
    """How to open a model; None: chosen by the machine and the model.

    quantize: bits of Linear layers, MLX only. remember: the only captions that will be used,
    so that MLX can release the text encoder. memory_limit: gigabytes, for MLX.
    """

    backend: Backend | None = None
    precision: Precision | None = None
    features: Path | None = None
    text_encoder: Path | None = None
    quantize: Bits | None = None
    remember: tuple[str, ...] | None = None
    memory_limit: float | None = None


@dataclass(frozen=True)
class Opening:
    """A model that exists and options that fit it; no framework is loaded yet."""

    named: NamedModel
    config: ModelConfig
    defaults: SamplingDefaults
    backend: Backend
    precision: Precision
    options: OpenOptions

    def check(self, settings: SampleSettings, prompts: Sequence[Prompt]) -> SamplerConfig:
        """The sampler for a request to this model; refuses what cannot work."""
        sampler = settings.sampler_config(self.defaults)
        check_request(self.config, prompts, sampler, settings.stop_at)
        return sampler

    def open(self, probe: Prompt | None = None, stop_at: int | None = None) -> Model:
        """Load the framework and the weights.

        Args:
            probe, stop_at: the prompt and side on which the cost of quantizing is measured.
        """
        if self.named.is_bundle:
            return Model(self, *self._bundle())
        sha256 = weights_sha256(self.named.path) or ""
        if self.backend == "torch":
            return Model(self, self._torch(), sha256)
        runtime, said = self._mlx(probe or Prompt("", 0), stop_at)
        return Model(self, runtime, sha256, said)

    def _bundle(self) -> tuple[Runtime, str]:
        """The runtime on the executor, or on Core ML with the manifest's compute units."""
        from mdm_apple.conversion.run.coreml import core_ml
        from mdm_apple.conversion.run.runtime import open_bundle_runtime

        load = core_ml() if self.backend == "coreml" else None
        return open_bundle_runtime(self.named.path, self.precision, self.options.features, load)

    def _torch(self) -> Runtime:
        require("torch")
        from mdm_apple.torch.load import open_runtime

        runtime = open_runtime(
            self.named.path,
            precision=self.precision,
            features=self.options.features,
            encoder_folder=self.options.text_encoder,
        )
        return cast(Runtime, runtime)

    def _mlx(self, probe: Prompt, stop_at: int | None) -> tuple[Runtime, str | None]:
        """The runtime, and a sentence about what quantizing cost."""
        require("mlx.core")
        from mdm_apple.mlx.load import open_runtime
        from mdm_apple.mlx.memory import limit_memory
        from mdm_apple.mlx.quantize import quantize_runtime

        if self.options.memory_limit is not None:
            limit_memory(self.options.memory_limit)
        runtime = open_runtime(
            self.named.path,
            precision=self.precision,
            features=self.options.features,
            encoder_folder=self.options.text_encoder,
            remember=self.options.remember,
        )
        bits = self.options.quantize
        if bits is None:
            return runtime, None
        done, psnr = quantize_runtime(runtime, bits, probe, level_of_side(self.config, stop_at))
        return runtime, (
            f"{bits} bits: {done.layers} Linear layers, weights {done.before / 1e6:.1f} MB before, "
            f"{done.after / 1e6:.1f} MB now; PSNR of predictions at least {psnr:.1f} dB."
        )


def prepare(named: NamedModel, options: OpenOptions | None = None) -> Opening:
    """Choose backend and precision for a model, and refuse options that do not fit together."""
    options = options or OpenOptions()
    backend = options.backend or ("reference" if named.is_bundle else default_backend())
    precision = options.precision or ("fp16" if named.is_bundle else "fp32")
    if named.is_bundle != (backend in ("coreml", "reference")):
        kind = "a bundle" if named.is_bundle else "a model folder"
        fitting = "reference or coreml" if named.is_bundle else "torch or mlx"
        raise MdmError(f"backend: {named} is {kind}, which runs on {fitting}, not {backend}.")
    if backend == "coreml" and precision != "fp16":
        raise MdmError(f"precision: Core ML runs packages as they are, in fp16, not {precision}.")
    for name, value in (
        ("quantize", options.quantize),
        ("low-memory", options.remember),
        ("memory-limit", options.memory_limit),
    ):
        if value is not None and backend != "mlx":
            raise MdmError(f"{name}: works with --backend mlx only, not {backend}.")
    for path in (options.features, options.text_encoder):
        if path is not None and not path.exists():
            raise MdmError(f"{path}: no such file or folder.")
    require_installed(*BUNDLE_PACKAGES if named.is_bundle else [backend])
    config = load_model_config(named.path)
    defaults = read_sampling(named.path, config.distilled)
    return Opening(named, config, defaults, backend, precision, options)


def default_backend() -> Backend:
    """MLX on Apple silicon, PyTorch elsewhere; the other if only that is installed."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    first: Backend = "mlx" if apple else "torch"
    second: Backend = "torch" if apple else "mlx"
    if importlib.util.find_spec(first) is None and importlib.util.find_spec(second) is not None:
        return second
    return first


def random_seed() -> int:
    """A seed for callers who gave none."""
    return secrets.randbelow(LARGEST_SEED + 1)


class Model:
    """A model that makes pictures: `model("red heart", seed=7)`."""

    def __init__(
        self, opening: Opening, runtime: Runtime, sha256: str, quantized: str | None = None
    ) -> None:
        self.name, self.config = opening.named.name, opening.config
        self.backend: Backend = opening.backend
        self.precision: Precision = opening.precision
        self.runtime, self.sha256 = runtime, sha256
        self.quantized = quantized  # what quantizing cost, as a sentence
        self._opening = opening

    @overload
    def __call__(
        self,
        prompt: str,
        *,
        n: None = None,
        seed: int | None = None,
        negative: str = "",
        steps: int | None = None,
        sampler: SamplerKind | None = None,
        guidance: float | None = None,
        eta: float | None = None,
        threshold: Threshold | None = None,
        spacing: Spacing | None = None,
        stop_at: int | None = None,
        progress: Callable[[StepPreview], bool | None] | None = None,
        filters: Sequence[Filter] = (),
    ) -> Picture: ...

    @overload
    def __call__(
        self,
        prompt: str,
        *,
        n: int,
        seed: int | None = None,
        negative: str = "",
        steps: int | None = None,
        sampler: SamplerKind | None = None,
        guidance: float | None = None,
        eta: float | None = None,
        threshold: Threshold | None = None,
        spacing: Spacing | None = None,
        stop_at: int | None = None,
        progress: Callable[[StepPreview], bool | None] | None = None,
        filters: Sequence[Filter] = (),
    ) -> list[Picture]: ...

    def __call__(
        self,
        prompt: str,
        *,
        n: int | None = None,
        seed: int | None = None,
        negative: str = "",
        steps: int | None = None,
        sampler: SamplerKind | None = None,
        guidance: float | None = None,
        eta: float | None = None,
        threshold: Threshold | None = None,
        spacing: Spacing | None = None,
        stop_at: int | None = None,
        progress: Callable[[StepPreview], bool | None] | None = None,
        filters: Sequence[Filter] = (),
    ) -> Picture | list[Picture]:
        """Make one picture, or a list of `n` with consecutive seeds.

        Args:
            seed: 0 to 2**32 - 1; None draws one, which the picture's recipe records.
            steps, sampler, guidance and the rest: None means whatever suits the model.
            progress: sees every step of the first picture; if it returns False, sampling stops and
                the pictures are the clean estimates so far, without a recipe.
            filters: see `mdm_apple.sampling.filters`.

        Raises MdmError for what the model cannot do.
        """
        settings = SampleSettings(sampler, steps, False, eta, guidance, threshold, spacing, stop_at)
        first = random_seed() if seed is None else seed
        prompts = [Prompt(prompt, first + k, negative) for k in range(n or 1)]
        made = list(self.pictures(prompts, settings, progress=progress, filters=filters))
        return made[0] if n is None else made

    def steps(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        negative: str = "",
        steps: int | None = None,
        sampler: SamplerKind | None = None,
        guidance: float | None = None,
        stop_at: int | None = None,
        filters: Sequence[Filter] = (),
    ) -> Iterator[StepPreview]:
        """Yield every step of one picture as it is made; the last one is the picture."""
        asked = SampleSettings(sampler, steps, guidance=guidance, stop_at=stop_at)
        prompts = [Prompt(prompt, random_seed() if seed is None else seed, negative)]
        config = self._check(asked, prompts, filters)
        for step in generate(self.runtime, prompts, config, stop_at):
            shown = _preview(step.index, step.total, step.final or step.x0)
            check_pictures(filters, shown.levels)
            yield shown

    def pictures(
        self,
        prompts: Sequence[Prompt],
        settings: SampleSettings,
        *,
        batch_size: int = 8,
        preview_every: int | None = None,
        progress: Callable[[StepPreview], bool | None] | None = None,
        filters: Sequence[Filter] = (),
    ) -> Iterator[Picture]:
        """Yield a picture for each prompt, in order, as soon as its batch is done.

        Args:
            preview_every: keep all levels each time this many steps are done, and at the end.
            progress: sees the first picture of each batch at every step; False stops all.
        """
        config = self._check(settings, prompts, filters)
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            shown: list[list[Pixels]] = []
            stopped, levels = False, list[Images]()
            for step in generate(self.runtime, batch, config, settings.stop_at):
                levels = step.final or step.x0
                if preview_every and step.index % preview_every == 0:
                    shown.append([to_pixels(level) for level in step.x0])
                if preview_every and step.final:
                    shown.append([to_pixels(level) for level in step.final])
                if filters:
                    check_pictures(filters, [row for x in levels for row in to_pixels(x)])
                if progress and progress(_preview(step.index, step.total, levels)) is False:
                    stopped = step.final is None
                    break
            yield from self._finished(batch, levels, shown, None if stopped else config, settings)
            if stopped:
                return

    def sampler_config(self, settings: SampleSettings) -> SamplerConfig:
        """The sampler for these settings and this model. Raises ConfigError."""
        return self._opening.check(settings, ())

    def recipe(self, prompt: Prompt, sampler: SamplerConfig, stop_at: int | None) -> Recipe:
        """How to make a picture again: `mdm sample --like FILE.png`."""
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
        )

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

    def _finished(
        self,
        batch: Sequence[Prompt],
        levels: Sequence[Images],
        shown: Sequence[Sequence[Pixels]],
        sampler: SamplerConfig | None,
        settings: SampleSettings,
    ) -> Iterator[Picture]:
        pixels = [to_pixels(level) for level in levels]
        for k, prompt in enumerate(batch):
            recipe = None if sampler is None else self.recipe(prompt, sampler, settings.stop_at)
            previews = tuple(tuple(level[k] for level in step) for step in shown)
            yield Picture(tuple(level[k] for level in pixels), recipe, previews)


def _preview(index: int, total: int, levels: Sequence[Images]) -> StepPreview:
    return StepPreview(index, total, tuple(to_pixels(level[:1])[0] for level in levels))


def remarks(
    opening: Opening, settings: SampleSettings, sampler: SamplerConfig, prompts: Sequence[Prompt]
) -> list[str]:
    """Remarks on a request that is not wrong but may surprise."""
    out: list[str] = []
    if any(p.negative for p in prompts) and sampler.guidance_scale == 1:
        out.append("negative: has no effect at guidance 1; give --guidance, such as 4.")
    config = opening.config
    if level_of_side(config, settings.stop_at) and not config.mixed_training:
        out.append(
            "stop-at: this model was not trained with mixed resolutions, so its inner levels alone "
            "may make worse pictures."
        )
    return out + _unlearned(opening.named.path, prompts)


def _unlearned(folder: Path, prompts: Sequence[Prompt]) -> list[str]:
    """A remark on prompts that the model has no caption for, with the nearest caption."""
    path = folder / CAPTIONS
    if not path.is_file() or path.stat().st_size > MAX_LISTED_BYTES:
        return []
    learned = read_captions(path)
    known = {caption.casefold() for caption in learned}
    asked = dict.fromkeys(clean_caption(p.text) for p in prompts)
    unknown = [text for text in asked if text.casefold() not in known]
    if not unknown:
        return []
    near = difflib.get_close_matches(unknown[0].casefold(), sorted(known), n=1, cutoff=0.0)
    more = f" (and {len(unknown) - 1} more prompts)" if len(unknown) > 1 else ""
    return [
        f"prompt: this model learned {len(learned):,} captions, and {unknown[0]!r}{more} is not "
        f"one of them; the nearest is {near[0]!r}."
    ]
