"""A model folder in MLX, ready to sample: `sampling.generate.Runtime`.

All arrays of a runtime are evaluated, so that any thread may use them: an unevaluated array belongs
to the stream of the thread that created it.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Precision
from mdm_apple.diffusion.arithmetic import guide
from mdm_apple.diffusion.prediction import limit_output
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.mlx.ops import MlxOps
from mdm_apple.mlx.precision import cast
from mdm_apple.mlx.text import NO_TEXT, EncodeText
from mdm_apple.mlx.unet import Conditioning, UNet
from mdm_apple.sampling.generate import Prompt
from mdm_apple.sampling.walk import Denoise, JumpTo


class MlxRuntime:
    """Network and text of one loaded model.

    Args:
        net: with its weights. encode: maps captions to features and mask; None without text.
        precision: for convolutions and matrix products; embeddings, norms and sampler stay fp32.
        compiled: fuse each step; None: on a GPU only (a CPU needs half a minute of compiler time
            first).
    """

    def __init__(
        self,
        config: ModelConfig,
        net: UNet,
        encode: EncodeText | None = None,
        precision: Precision = "fp32",
        compiled: bool | None = None,
    ) -> None:
        self.config, self.ops = config, MlxOps()
        self.schedule = build_schedule(config.diffusion.schedule, config.model.scales)
        self.net = net
        self._encode = encode
        self._compiled = on_gpu() if compiled is None else compiled
        net.eval()
        cast(net, precision)

    def denoiser(
        self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int
    ) -> Denoise:
        """See `generate.Runtime`. Guidance is one batch with the unconditional rows first."""
        config, rows = self.config, len(prompts)
        guided = guidance_scale != 1 and self._encode is not None
        level = self.net.level_modules()[first_level]
        captions, negatives = [p.text for p in prompts], [p.negative for p in prompts]
        if guided:
            conditioning = self._condition(level, negatives + captions, captions + negatives)
        else:
            conditioning = self._condition(level, captions)

        def step(x_t: list[mx.array], times: mx.array) -> list[mx.array]:
            batch = rows * (2 if guided else 1)
            tembs = [mx.broadcast_to(t, (batch, t.shape[1])) for t in level.embed(times)]
            if guided:
                x_t = [mx.concatenate([x, x]) for x in x_t]
            out = level.denoise(x_t, tembs, conditioning)
            out = [limit_output(o, config.diffusion, len(config.sides), self.ops) for o in out]
            return [guide(o[rows:], o[:rows], guidance_scale) for o in out] if guided else out

        run = mx.compile(step) if self._compiled else step

        def denoise(x_t: list[mx.array], time: int) -> list[mx.array]:
            # an array: a Python number would be part of the graph, traced anew each step
            return run(list(x_t), mx.array([time]))

        return denoise

    def jumper(self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int) -> JumpTo:
        """See `generate.StudentRuntime`. Guidance is an input: one evaluation, not two."""
        config, rows = self.config, len(prompts)
        level = self.net.level_modules()[first_level]
        conditioning = self._condition(level, [p.text for p in prompts])
        takes_weight = config.distilled is not None and config.distilled.guidance is not None
        weight = mx.array([guidance_scale]) if takes_weight else None

        def step(x_t: list[mx.array], times: mx.array, targets: mx.array) -> list[mx.array]:
            tembs = level.embed(times, None, targets, weight)
            tembs = [mx.broadcast_to(t, (rows, t.shape[1])) for t in tembs]
            out = level.denoise(x_t, tembs, conditioning)
            return [limit_output(o, config.diffusion, len(config.sides), self.ops) for o in out]

        run = mx.compile(step) if self._compiled else step

        def jump(x_t: list[mx.array], time: int, target: int) -> list[mx.array]:
            return run(list(x_t), mx.array([time]), mx.array([target]))

        return jump

    def _condition(
        self, level: UNet, captions: Sequence[str], beside: Sequence[str] | None = None
    ) -> Conditioning:
        """The captions' contribution, computed once for all timesteps."""
        encode = self._encode
        text = encode.features(*encode.inputs(captions, beside)) if encode else NO_TEXT
        conditioning = level.condition(*text)
        mx.eval(conditioning.pooled, conditioning.mask, conditioning.keys_values)
        return conditioning

    def image(self, x: NDArray[np.float32]) -> mx.array:
        return to_image(x)

    def numpy(self, x: mx.array) -> NDArray[np.float32]:
        return np.ascontiguousarray(np.array(x.astype(mx.float32)).transpose(0, 3, 1, 2))


def to_image(x: NDArray[np.float32]) -> mx.array:
    """Convert (B, C, H, W) to an MLX (B, H, W, C)."""
    return mx.array(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))


def on_gpu() -> bool:
    return mx.default_device() == mx.Device(mx.gpu)
