"""BOOT in MLX: the student's step. The arithmetic is in `training.boot`.

The step is not compiled: the drawn indices, which are outside the graph, decide its jumps and the
table entries it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import is_students_own
from mdm_apple.config.types import Indices
from mdm_apple.diffusion.arithmetic import guide
from mdm_apple.diffusion.prediction import limit_output
from mdm_apple.errors import MdmError
from mdm_apple.mlx.learner import MlxLearner
from mdm_apple.mlx.load import open_network
from mdm_apple.mlx.nested_unet import build_unet
from mdm_apple.mlx.ops import MlxOps
from mdm_apple.mlx.runtime import to_image
from mdm_apple.mlx.text import NO_TEXT, EncodeText, Text, open_text
from mdm_apple.mlx.unet import UNet
from mdm_apple.mlx.weights import flat, nested
from mdm_apple.training.boot import BootBatch, BootConfig, BootLoss, Jump, Teacher
from mdm_apple.training.distill import DistillJob
from mdm_apple.training.parts import Part
from mdm_apple.training.settings import TrainConfig

MaybeText = Text | tuple[None, None, None]
# data of a batch -> its guided predictions
OpenTeacher = Callable[[BootBatch, MaybeText], Teacher]


class MlxBootLearner(MlxLearner[BootBatch]):
    """Trains a student to jump where its teacher takes many steps.

    Args:
        net: the student. teacher: see `network_teacher`.
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
        super().__init__(net, config, train, encode, compiled=False)
        self.extra = ("boundary_loss", *(["level_distance"] if len(config.sides) > 1 else []))
        self._teacher = teacher
        self._loss = BootLoss(
            self._schedule,
            config.diffusion,
            config.model,
            boot,
            self._ops,
            lambda x: mx.array(x.astype(np.float32))[:, None, None, None],
        )

    def idle(self) -> frozenset[str]:
        return frozenset(name for name in super().idle() if not is_students_own(name))

    def arrays(self, batch: BootBatch, part: Part) -> Mapping[str, Any]:
        encode = self._encode
        text = encode.features(*encode.inputs(batch.captions)) if encode else NO_TEXT
        return {"batch": batch, "part": part, "text": text}

    def losses(self, given: Mapping[str, Any]) -> tuple[mx.array, mx.array]:
        batch: BootBatch = given["batch"]
        student = self._jump(batch, given["text"])
        parts = self._loss(
            student,
            _without_gradients(student),
            _without_gradients(self._teacher(batch, given["text"])),
            [to_image(noise) for noise in batch.noise],
            batch,
            given["part"],
        )
        weight, means = given["share"]["weight"], given["share"]["mean_seen"]
        shown = [
            m[:n].sum() / mean for m, n, mean in zip(parts.mse, parts.seen, means, strict=True)
        ]
        at_start = batch.times == batch.start
        own = (parts.mse[-1] * mx.array(at_start)).sum()
        shown.append(own / max(int(at_start.sum()), 1) * weight)
        if parts.level_gap is not None:
            shown.append(mx.sqrt(parts.level_gap) * weight)
        return parts.per_sample.mean(), mx.stack(shown)

    def _jump(self, batch: BootBatch, text: MaybeText) -> Jump:
        """The current student."""
        worded = self.config.distilled is not None and self.config.distilled.guidance is not None
        weight = mx.array(batch.guidance) if worded else None
        conditioning = self.net.condition(*text)

        def jump(z: Sequence[mx.array], start: Indices, target: Indices) -> list[mx.array]:
            tembs = self.net.embed(_times(start - 1), None, _times(target), weight)
            out = self.net.denoise(list(z), tembs, conditioning)
            return _limited(out, self.config, self._ops)

        return jump


def network_teacher(net: UNet, config: ModelConfig, encode: EncodeText | None) -> OpenTeacher:
    """A network as a teacher, with classifier-free guidance at the weights of the batch.

    The two prompts need two calls: joined into one batch, the first rows of a mixed batch would no
    longer come first.
    """
    ops = MlxOps()
    empty = encode.features(*encode.inputs([""])) if encode is not None else None
    mx.eval(empty)

    def open_teacher(batch: BootBatch, text: MaybeText) -> Teacher:
        weight = mx.array(batch.guidance)[:, None, None, None]
        conditioning = net.condition(*text)
        bare = None
        if empty is not None and (batch.guidance != 1).any():
            values, mask = (mx.repeat(part, len(batch), axis=0) for part in empty[:2])
            bare = net.condition(values, mask, text[2])  # no caption is shorter than the null

        def predict(x_t: Sequence[mx.array], t: Indices) -> list[mx.array]:
            tembs = net.embed(_times(t - 1))
            out = _limited(net.denoise(list(x_t), tembs, conditioning), config, ops)
            if bare is None:
                return out
            base = _limited(net.denoise(list(x_t), tembs, bare), config, ops)
            return [guide(c, u, weight[: len(c)]) for c, u in zip(out, base, strict=True)]

        return predict

    return open_teacher


def open_boot_learner(config: ModelConfig, job: DistillJob) -> MlxBootLearner:
    """A learner whose student starts as its teacher; `distill.OpenBootLearner` for MLX."""
    teacher = open_network(job.teacher)
    teacher.eval()
    mx.random.seed(job.train.seed)
    student = build_unet(config.model)
    load_teacher(student, flat(teacher.parameters()))
    encode = open_text(job.teacher, config, features=job.features, encoder_folder=job.text_encoder)
    opened = network_teacher(teacher, config, encode)
    return MlxBootLearner(student, opened, config, job.train, job.boot, encode)


def load_teacher(net: UNet, weights: Mapping[str, mx.array]) -> None:
    """Load a teacher's weights strictly, except for the inputs that only a student has."""
    own = flat(net.parameters())
    for name in {**weights, **{k: v for k, v in own.items() if not is_students_own(k)}}:
        if name not in own or name not in weights or own[name].shape != weights[name].shape:
            raise MdmError(f"teacher: {name} does not fit its student.")
    net.update(nested(weights))


def _times(index: NDArray[np.int64]) -> mx.array:
    return mx.array(index.astype(np.int32))


def _limited(out: Sequence[mx.array], config: ModelConfig, ops: MlxOps) -> list[mx.array]:
    return [limit_output(o, config.diffusion, len(config.sides), ops) for o in out]


def _without_gradients(network: Callable[..., Sequence[mx.array]]) -> Any:
    return lambda *args: [mx.stop_gradient(out) for out in network(*args)]
