"""A bundle, ready to sample: `sampling.generate.Runtime` on the executor, Core ML or Core AI.

Packages take one picture, so a batch is a loop; guidance calls the network twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdm_apple.config.types import ExecutorPrecision, Floats
from mdm_apple.diffusion.arithmetic import guide
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.sampling.generate import Prompt
from mdm_apple.sampling.walk import Denoise, JumpTo
from mdm_apple.text.feature_cache import FeatureCache

from ..bundle.folder import Bundle
from ..errors import BundleError
from .packages import Denoiser, Jump, Load, Values
from .prompts import BundlePrompts


class BundleRuntime:
    """See `generate.Runtime`.

    Args:
        precision: "fp16" rounds every stored value as a device does; "fp32" rounds none.
        features: a cache from `mdm embed`, for bundles without a text encoder.
        load: what runs the packages; None for what suits their format.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: ExecutorPrecision = "fp16",
        features: FeatureCache | None = None,
        load: Load | None = None,
    ) -> None:
        self.config, self.ops = bundle.config(), NumpyOps()
        self.schedule = bundle.schedule()
        self.bundle = bundle
        self._denoiser = Denoiser(bundle, precision, load)
        self._prompts = BundlePrompts(bundle, self._denoiser, features)

    def denoiser(
        self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int
    ) -> Denoise:
        """The network with text, time and guidance applied.

        Raises BundleError if the bundle cannot stop at `first_level`.
        """
        self._check_stop(first_level)
        guided = guidance_scale != 1 and self.bundle.manifest.guidance == "cfg"
        given = [(p.text, p.negative if guided else None) for p in prompts]
        negatives = [(p.negative, p.text) for p in prompts] if guided else []
        text = self._prompts.condition([*given, *negatives])

        def denoise(x_t: list[Floats], time: int) -> list[Floats]:
            def row(prompt: Prompt, own: list[Floats]) -> list[Floats]:
                beside = prompt.negative if guided else None
                out = self._predict(own, time, text[prompt.text, beside], first_level)
                if guided:
                    negative = text[prompt.negative, prompt.text]
                    base = self._predict(own, time, negative, first_level)
                    out = [guide(c, u, guidance_scale) for c, u in zip(out, base, strict=True)]
                return out

            return _in_turn(prompts, x_t, row)

        return denoise

    def jumper(self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int) -> JumpTo:
        """See `generate.StudentRuntime`: one evaluation per picture; the weight is an input."""
        self._check_stop(first_level)
        text = self._prompts.condition([(p.text, None) for p in prompts])

        def jump_to(x_t: list[Floats], time: int, target: int) -> list[Floats]:
            jump = Jump(target, guidance_scale)

            def row(prompt: Prompt, own: list[Floats]) -> list[Floats]:
                return self._predict(own, time, text[prompt.text, None], first_level, jump)

            return _in_turn(prompts, x_t, row)

        return jump_to

    def _predict(
        self,
        x_t: list[Floats],
        time: int,
        text: Values,
        first_level: int,
        jump: Jump | None = None,
    ) -> list[Floats]:
        return self._denoiser.predict(x_t, time, text, first_level=first_level, jump=jump)

    def _check_stop(self, first_level: int) -> None:
        if first_level and self.bundle.manifest.layout == "monolith":
            raise BundleError(
                f"{self.bundle.path}: a monolith runs all of its levels, so it cannot stop at "
                f"{self.config.sides[first_level]}; leave out --stop-at or use the model folder."
            )

    def image(self, x: Floats) -> Floats:
        return x

    def numpy(self, x: Any) -> Floats:
        return np.asarray(x, np.float32)


def _in_turn(
    prompts: Sequence[Prompt],
    x_t: list[Floats],
    row: Callable[[Prompt, list[Floats]], list[Floats]],
) -> list[Floats]:
    """Call `row` for each prompt and its images (1, 3, side, side); returns a batch per level."""
    rows = [row(prompt, [x[k : k + 1] for x in x_t]) for k, prompt in enumerate(prompts)]
    return [np.concatenate(level) for level in zip(*rows, strict=True)]


def open_bundle_runtime(
    path: Path,
    precision: str = "fp16",
    features: Path | None = None,
    load: Load | None = None,
) -> tuple[BundleRuntime, str]:
    """A runtime for `mdm sample`, and the digest of the bundle. Raises BundleError.

    Args:
        load: runs packages by something else than the executor.
    """
    if precision not in ("fp16", "fp32"):
        raise BundleError(f"dtype: a bundle runs in fp16 or fp32, not {precision}.")
    bundle = Bundle.open(path)
    cache = None
    if features is not None:
        text = bundle.config().text
        if text is None:
            raise BundleError(f"{path}: its model takes no text, so leave out --features.")
        cache = FeatureCache.for_text(features, text)
    return BundleRuntime(bundle, precision, cache, load), bundle.manifest.digest
