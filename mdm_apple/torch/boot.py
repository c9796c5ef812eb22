"""BOOT in PyTorch: the student's step. The arithmetic is in `training.boot`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import is_students_own
from mdm_apple.config.types import Indices
from mdm_apple.diffusion.arithmetic import guide
from mdm_apple.diffusion.prediction import limit_output
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.errors import MdmError
from mdm_apple.torch.learner import Losses, TorchLearner
from mdm_apple.torch.load import open_network
from mdm_apple.torch.nested_unet import build_unet
from mdm_apple.torch.open_run import default_device
from mdm_apple.torch.ops import TorchOps
from mdm_apple.torch.text import NO_TEXT, EncodeText, Text, open_text
from mdm_apple.torch.unet import UNet
from mdm_apple.training.boot import BootBatch, BootConfig, BootLoss, Jump, Teacher
from mdm_apple.training.distill import DistillJob
from mdm_apple.training.parts import Part
from mdm_apple.training.settings import TrainConfig

MaybeText = Text | tuple[None, None, None]
# data of a batch -> its guided predictions
OpenTeacher = Callable[[BootBatch, MaybeText], Teacher]


class TorchBootLearner(TorchLearner[BootBatch]):
    """Trains a student to jump where its teacher takes many steps.

    Args:
        net: the student, on its device. teacher: see `network_teacher`.
        config: the student's. encode: maps captions to features, frozen; None without text.
    """

    def __init__(
        self,
        net: UNet,
        teacher: OpenTeacher,
        config: ModelConfig,
        train: TrainConfig,
        boot: BootConfig,
        encode: EncodeText | None = None,
    ) -> None:
        super().__init__(net, config, train, encode)
        self._teacher = teacher
        self._loss = BootLoss(
            build_schedule(config.diffusion.schedule, config.model.scales),
            config.diffusion,
            config.model,
            boot,
            self._ops,
            self._array,
        )

    def losses(self, batch: BootBatch, part: Part) -> Losses:
        with torch.no_grad():
            text = self._encode(batch.captions) if self._encode else NO_TEXT
            teacher = self._teacher(batch, text)
        student = self._jump(batch, text)
        parts = self._loss(
            student,
            _without_gradients(student),
            _without_gradients(teacher),
            [self._image(noise) for noise in batch.noise],
            batch,
            part,
        )
        at_start = torch.from_numpy(batch.times == batch.start).to(self.device)
        own = parts.mse[-1].detach() * at_start
        extra = {"boundary_loss": own.sum() / at_start.sum().clamp(min=1)}
        if parts.level_gap is not None:
            extra["level_distance"] = parts.level_gap.detach() ** 0.5
        return Losses(parts.per_sample.mean(), parts.mse, parts.seen, extra)

    def _jump(self, batch: BootBatch, text: MaybeText) -> Jump:
        """The current student; each call has its own autocast.

        Autocast caches cast weights until it ends: if it began without gradients, later calls
        would have none either.
        """
        guidance = torch.from_numpy(batch.guidance).to(self.device)
        weight = guidance if self.config.distilled and self.config.distilled.guidance else None

        def jump(z: Sequence[Tensor], start: Indices, target: Indices) -> list[Tensor]:
            times, targets = (torch.from_numpy(x).to(self.device) for x in (start - 1, target))
            with self._autocast():
                tembs = self.net.embed(times, None, targets, weight)
                out = self.net.denoise(z, tembs, self.net.condition(*text))
            return _limited(out, self.config, self._ops)

        return jump

    def _array(self, x: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(x.astype(np.float32)).to(self.device)[:, None, None, None]


def network_teacher(net: UNet, config: ModelConfig, encode: EncodeText | None) -> OpenTeacher:
    """A network as a teacher, with classifier-free guidance at the weights of the batch.

    The two prompts need two calls: joined into one batch, the first rows of a mixed batch would no
    longer come first.
    """
    ops, device = TorchOps(), next(net.parameters()).device
    with torch.no_grad():
        empty = encode([""]) if encode else None

    def open_teacher(batch: BootBatch, text: MaybeText) -> Teacher:
        weight = torch.from_numpy(batch.guidance).to(device)[:, None, None, None]
        conditioning = net.condition(*text)
        bare = None
        if empty is not None and (batch.guidance != 1).any():
            values, mask = (part.expand(len(batch), *part.shape[1:]) for part in empty[:2])
            bare = net.condition(values, mask, text[2])  # no caption is shorter than the null

        def predict(x_t: Sequence[Tensor], t: Indices) -> list[Tensor]:
            tembs = net.embed(torch.from_numpy(t - 1).to(device))
            out = _limited(net.denoise(x_t, tembs, conditioning), config, ops)
            if bare is None:
                return out
            base = _limited(net.denoise(x_t, tembs, bare), config, ops)
            return [guide(c, u, weight[: len(c)]) for c, u in zip(out, base, strict=True)]

        return predict

    return open_teacher


def open_boot_learner(
    config: ModelConfig, job: DistillJob, device: torch.device | None = None
) -> TorchBootLearner:
    """A learner whose student starts as its teacher; `distill.OpenBootLearner` for torch."""
    device = device or default_device()
    teacher = open_network(job.teacher).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(job.train.seed)
    student = student_of(teacher, config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    encode = open_text(
        job.teacher, config, device, features=job.features, encoder_folder=job.text_encoder
    )
    opened = network_teacher(teacher, config, encode)
    return TorchBootLearner(student, opened, config, job.train, job.boot, encode)


def student_of(teacher: UNet, config: ModelConfig) -> UNet:
    """A network of `config` with the weights of its teacher and fresh extra inputs."""
    net = build_unet(config.model)
    load_teacher(net, teacher.state_dict())
    return net


def load_teacher(net: UNet, weights: Mapping[str, Tensor]) -> None:
    """Load a teacher's weights strictly, except for the inputs that only a student has."""
    found = net.load_state_dict(dict(weights), strict=False)
    missing = [name for name in found.missing_keys if not is_students_own(name)]
    if found.unexpected_keys or missing:
        raise MdmError(f"teacher: {(found.unexpected_keys + missing)[0]} does not fit its student.")


def _limited(out: Sequence[Tensor], config: ModelConfig, ops: TorchOps) -> list[Tensor]:
    return [limit_output(o, config.diffusion, len(config.sides), ops) for o in out]


def _without_gradients(network):  # type: ignore[no-untyped-def]
    return torch.no_grad()(network)
