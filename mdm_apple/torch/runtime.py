"""A model folder in PyTorch, ready to sample: `sampling.generate.Runtime`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import stays_fp32
from mdm_apple.config.types import Precision
from mdm_apple.diffusion.arithmetic import guide
from mdm_apple.diffusion.prediction import limit_output
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.sampling.generate import Prompt
from mdm_apple.sampling.walk import Denoise, JumpTo
from mdm_apple.torch.cpu.packed import can_pack, give_back, pack
from mdm_apple.torch.ops import TorchOps
from mdm_apple.torch.text import NO_TEXT, EncodeText
from mdm_apple.torch.unet import Conditioning, UNet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRuntime:
    """Network, text and device of one loaded model.

    Args:
        net: with its weights. encode: maps captions to features and mask; None without text.
        precision: for convolutions and matrix products; embeddings, norms and sampler stay fp32.
        packed: see `prepare`.
    """

    def __init__(
        self,
        config: ModelConfig,
        net: UNet,
        encode: EncodeText | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        packed: bool = False,
    ) -> None:
        self.config, self.ops = config, TorchOps()
        self.schedule = build_schedule(config.diffusion.schedule, config.model.scales)
        self.device = torch.device(device)
        self.net = prepare(net, self.device, precision, packed)
        self._encode = encode

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

        @torch.inference_mode()
        def denoise(x_t: list[Tensor], time: int) -> list[Tensor]:
            times = torch.full((1,), time, device=self.device)
            tembs = [t.expand(rows * (2 if guided else 1), -1) for t in level.embed(times)]
            if guided:
                x_t = [torch.cat([x, x]) for x in x_t]
            out = level.denoise(x_t, tembs, conditioning)
            out = [limit_output(o, config.diffusion, len(config.sides), self.ops) for o in out]
            return [guide(o[rows:], o[:rows], guidance_scale) for o in out] if guided else out

        return denoise

    def jumper(self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int) -> JumpTo:
        """See `generate.StudentRuntime`. Guidance is an input: one evaluation, not two."""
        config, rows = self.config, len(prompts)
        level = self.net.level_modules()[first_level]
        conditioning = self._condition(level, [p.text for p in prompts])
        takes_weight = config.distilled is not None and config.distilled.guidance is not None
        weight = torch.full((1,), guidance_scale, device=self.device) if takes_weight else None

        @torch.inference_mode()
        def jump(x_t: list[Tensor], time: int, target: int) -> list[Tensor]:
            times = torch.tensor([time, target], device=self.device)
            tembs = level.embed(times[:1], None, times[1:], weight)
            out = level.denoise(x_t, [t.expand(rows, -1) for t in tembs], conditioning)
            return [limit_output(o, config.diffusion, len(config.sides), self.ops) for o in out]

        return jump

    @torch.inference_mode()
    def _condition(
        self, level: UNet, captions: Sequence[str], beside: Sequence[str] | None = None
    ) -> Conditioning:
        """The captions' contribution, computed once for all timesteps."""
        text = self._encode(captions, beside) if self._encode else NO_TEXT
        return level.condition(*text)

    def image(self, x: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(x).to(self.device, memory_format=torch.channels_last)

    def numpy(self, x: Tensor) -> NDArray[np.float32]:
        return x.float().cpu().numpy()


def prepare(
    net: UNet, device: torch.device, precision: Precision = "fp32", packed: bool = False
) -> UNet:
    """Put the network on a device for inference: channels last, reduced precision where safe.

    Args:
        packed: reorder weights permanently if that is faster on the device; no training afterwards.
    """
    net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    if precision != "fp32":
        for name, module in net.named_modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and not stays_fp32(name):
                module.to(DTYPES[precision])
    if packed and can_pack(device, DTYPES[precision]):
        pack(net)
        give_back()
    return net
