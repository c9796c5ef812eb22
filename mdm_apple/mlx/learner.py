"""One optimisation step in MLX, on one process or on several (mlx.launch).

A step is one compiled function: forward, backward, clipping, AdamW and averages. Its captured state
is the network, encoder, moments, averages and random state. Everything that changes from step to
step is an array, so the step is traced only once; it is evaluated once, at its end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import encoder_shapes, idle_parameters, state_shapes
from mdm_apple.data.batches import Batch
from mdm_apple.diffusion.loss import batch_loss, nested_loss
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.diffusion.schedule import build_schedule, vdm_weights
from mdm_apple.errors import MdmError
from mdm_apple.mlx.adamw import AdamW, Arrays, clip
from mdm_apple.mlx.dropout import dropouts_of, keys_of
from mdm_apple.mlx.ema import Ema
from mdm_apple.mlx.ops import MlxOps
from mdm_apple.mlx.precision import DTYPES, reducible
from mdm_apple.mlx.runtime import MlxRuntime, to_image
from mdm_apple.mlx.t5 import T5Encoder
from mdm_apple.mlx.text import NO_TEXT, EncodeText
from mdm_apple.mlx.unet import UNet
from mdm_apple.mlx.weights import flat, load_weights, nested, save_weights, to_folder, to_mlx
from mdm_apple.training.dropout import row_seeds
from mdm_apple.training.learner import Rows, Snapshot, StepMetrics, split_rows
from mdm_apple.training.parts import Part, parts_of, whole
from mdm_apple.training.settings import TrainConfig, ema_decay_at, learning_rate

ENCODER = "text_encoder."  # prefix of the encoder's names in the optimiser's state
EMBEDDINGS = f"{ENCODER}shared.weight"

Sums = tuple[Arrays, mx.array, mx.array]  # gradients, loss and losses per level, summed over parts


class MlxLearner(ABC, Generic[Rows]):
    """Network, optional text encoder, AdamW and their averages; `losses` is the objective.

    Args:
        encode: maps captions to features, through `encoder` or from elsewhere; None without text.
        encoder: trained with the network, if given.
        compiled: False runs the same step eagerly.
        dropout_by_row: see `training.dropout`.
    """

    extra: tuple[str, ...] = ()  # names of values to log besides the losses of the levels

    def __init__(
        self,
        net: UNet,
        config: ModelConfig,
        train: TrainConfig,
        encode: EncodeText | None = None,
        encoder: T5Encoder | None = None,
        compiled: bool = True,
        dropout_by_row: bool = False,
    ) -> None:
        self.net, self.encoder, self._encode = net, encoder, encode
        self.config, self.train = config, train
        self.rank, self.world = process_rank()
        self._ops = MlxOps()
        self._schedule = build_schedule(config.diffusion.schedule, config.model.scales)
        for level in net.level_modules():
            level.checkpointing = train.checkpointing
        self._reduced = reducible(net) if train.precision == "bf16" else frozenset[str]()
        self._idle = self.idle()
        self._shapes = dict(state_shapes(config.model))
        if encoder is not None:
            own = encoder_shapes(encoder.config)
            self._shapes |= {ENCODER + name: shape for name, shape in own.items()}
        self._rate_scales = {EMBEDDINGS: train.embedding_lr_scale}
        self._row_keys, dropouts = dropouts_of(net, encoder)
        self.dropout_by_row = dropout_by_row and dropouts > 0
        self.optimizer = AdamW(self._trainable(), train)
        self.ema = Ema(net) if train.ema_decay is not None else None
        self.encoder_ema = Ema(encoder) if encoder and train.ema_decay is not None else None
        self._state: list[Any] = [net.state, self.optimizer.moments, mx.random.state]
        self._state += [encoder.state] if encoder is not None else []
        self._state += [ema.weights for ema in self._averages()]
        mx.eval(self._state)
        prepare: Callable[[Any], Any] = (
            (lambda f: mx.compile(f, inputs=self._state, outputs=self._state))
            if compiled
            else (lambda f: f)
        )
        self._add_part, self._finish, self._evaluate = map(
            prepare, (self._added_part, self._finished_step, self._validation_loss)
        )

    def idle(self) -> frozenset[str]:
        """Parameters that no loss reads; as in torch, they have no moments."""
        return idle_parameters(self.config.model)

    @abstractmethod
    def arrays(self, batch: Rows, part: Part) -> Mapping[str, Any]:
        """Some rows in the form that `losses` takes; only arrays if it is traced."""

    @abstractmethod
    def losses(self, given: Mapping[str, Any]) -> tuple[mx.array, mx.array]:
        """Mean loss of some rows, and one array: what they add to the mean over all parts of the
        unweighted error per level, then of `extra`.

        given: `arrays`, and "share", see `_given`.
        """

    def _given(self, batch: Rows, part: Part, index: int | None = None) -> Mapping[str, Any]:
        """What a traced step takes: `arrays`, and as constants the numbers of a part.

        index: of the step; None for validation, which drops nothing.
        """
        fractions = (1.0,) * len(self.config.sides)
        if self.net.training:  # for validation: every level sees all
            fractions = self.config.diffusion.mixed_fractions or fractions
        share = {
            "weight": part.weight,
            "seen": part.seen(fractions),
            "mean_seen": part.mean_seen(fractions),
        }
        given = {**self.arrays(batch, part), "share": share}
        if self.dropout_by_row and index is not None:
            given["keys"] = keys_of(row_seeds(self.train.seed, index, part.rows))
        return given

    def step(self, batch: Rows, index: int) -> StepMetrics:
        self._set_mode(training=True)
        seed = (self.train.seed << 40) + (index << 12) + self.rank  # for dropout of older runs
        mx.random.seed(seed % 2**63)
        parts = parts_of(self.train, self.rank, self.world)
        *first, last = [
            self._given(rows, part, index)
            for rows, part in zip(split_rows(batch, parts), parts, strict=True)
        ]
        sums: Sums | None = None
        for part in first:  # evaluated one by one, so that not all activations are kept
            sums = self._add_part(part, sums)
            mx.eval(sums, self._state)
        decay = ema_decay_at(self.train, index)
        scalars = self.optimizer.begin(learning_rate(self.train, index))
        scalars |= {"decay": mx.array(decay), "rest": mx.array(1 - decay)}
        loss, levels, norm = self._finish(last, sums, scalars)
        mx.eval(loss, levels, norm, self._state)
        numbers = np.array(levels).tolist()
        count = len(numbers) - len(self.extra)
        extra = dict(zip(self.extra, numbers[count:], strict=True))
        return StepMetrics(float(loss), tuple(numbers[:count]), float(norm), extra)

    def validate(self, batch: Rows) -> float:
        self._set_mode(training=False)
        self._swap_averages()
        try:
            loss = self._evaluate(self._given(batch, whole(len(batch))))
            mx.eval(loss, self._state)
        finally:
            self._swap_averages()
        return float(loss)

    def totals(self, numbers: Sequence[float]) -> list[float]:
        if self.world == 1:
            return list(numbers)
        return np.array(mx.distributed.all_sum(mx.array(list(numbers), mx.float32))).tolist()

    def same_everywhere(self, number: int) -> bool:
        if self.world == 1:
            return True
        ends = mx.distributed.all_max(mx.array([number, -number], mx.int32))
        return ends.sum().item() == 0

    def any_asked(self, asked: bool) -> bool:
        return asked if self.world == 1 else bool(mx.distributed.all_max(mx.array(asked)).item())

    @contextmanager
    def averaged(self) -> Generator[MlxRuntime]:
        """A context in which the network has its averaged weights, for sampling."""
        self._set_mode(training=False)
        self._swap_averages()
        try:
            yield MlxRuntime(self.config, self.net, self._encode)
        finally:
            self._swap_averages()

    def snapshot(self) -> Snapshot:
        shapes = state_shapes(self.config.model)
        encoder, averages = self.encoder, self.encoder_ema
        own = encoder_shapes(encoder.config) if encoder is not None else {}
        return Snapshot(
            weights=save_weights(flat(self.net.parameters()), shapes),
            ema=save_weights(self.ema.weights, shapes) if self.ema else None,
            encoder=save_weights(flat(encoder.parameters()), own) if encoder is not None else None,
            encoder_ema=save_weights(averages.weights, own) if averages else None,
            optimizer=self._optimizer_state(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same configuration, of either backend."""
        load_weights(self.net, snapshot.weights)
        if self.encoder is not None and snapshot.encoder is not None:
            load_weights(self.encoder, snapshot.encoder)
        for ema, saved in ((self.ema, snapshot.ema), (self.encoder_ema, snapshot.encoder_ema)):
            if ema and saved is not None:
                ema.load({k: to_mlx(saved[k], v.shape) for k, v in ema.weights.items()})
        self._load_optimizer_state(snapshot.optimizer)
        mx.eval(self._state)

    def _added_part(self, given: Mapping[str, Any], sums: Sums | None) -> Sums:
        """Add the gradients and losses of one part to the sums so far."""
        everything = self._weights()

        def loss_of(parameters: Arrays) -> tuple[mx.array, mx.array]:
            weights = everything | parameters
            reduced = {k: weights[k].astype(DTYPES["bf16"]) for k in self._reduced}
            self._install(weights | reduced)
            loss, levels = self.losses(given)
            weight = given["share"]["weight"]
            return loss if weight == 1 else loss * weight, levels

        self._row_keys.keys = given.get("keys")  # also for what the backward pass recomputes
        (loss, levels), gradients = mx.value_and_grad(loss_of)(self._trainable())
        self._row_keys.keys = None
        self._install(everything)
        if sums is None:
            return gradients, loss, levels
        before, loss_before, levels_before = sums
        added = {name: before[name] + gradient for name, gradient in gradients.items()}
        return added, loss_before + loss, levels_before + levels

    def _finished_step(
        self, given: Mapping[str, Any], sums: Sums | None, scalars: Arrays
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Do the last part and update the weights: loss, losses per level, gradient norm."""
        gradients, loss, levels = self._added_part(given, sums)
        parts = self.train.accumulate
        gradients = {name: g / parts for name, g in gradients.items()} if parts > 1 else gradients
        if self.world > 1:
            gradients = flat(nn.average_gradients(nested(gradients)))
        loss, levels = self._mean(loss / parts), self._mean(levels / parts)
        gradients, norm = clip(gradients, self.train.clip_norm)
        new = self.optimizer.apply(self._trainable(), gradients, scalars, self._rate_scales)
        self._install(new)
        for ema in self._averages():
            ema.update(scalars["decay"], scalars["rest"])
        return loss, levels, norm

    def _validation_loss(self, given: Mapping[str, Any]) -> mx.array:
        loss, _ = self.losses(given)
        return loss

    def _mean(self, value: mx.array) -> mx.array:
        """Over processes."""
        return mx.distributed.all_sum(value) / self.world if self.world > 1 else value

    def _weights(self) -> Arrays:
        """Every weight, including frozen ones; the encoder's have their prefix."""
        weights = flat(self.net.parameters())
        if self.encoder is not None:
            own = flat(self.encoder.parameters())
            weights |= {ENCODER + name: value for name, value in own.items()}
        return weights

    def _trainable(self) -> Arrays:
        """Weights that learn; as in torch, weights without a gradient have no moments."""
        own = flat(self.net.trainable_parameters())
        weights = {name: value for name, value in own.items() if name not in self._idle}
        if self.encoder is not None:
            own = flat(self.encoder.trainable_parameters())
            weights |= {ENCODER + name: value for name, value in own.items()}
        return weights

    def _install(self, weights: Mapping[str, mx.array]) -> None:
        """Install the given weights."""
        own = {k: v for k, v in weights.items() if not k.startswith(ENCODER)}
        self.net.update(nested(own))
        if self.encoder is not None:
            theirs = {k[len(ENCODER) :]: v for k, v in weights.items() if k.startswith(ENCODER)}
            self.encoder.update(nested(theirs))

    def _set_mode(self, training: bool) -> None:
        self.net.train(training)
        if self.encoder is not None:
            self.encoder.train(training)

    def _averages(self) -> list[Ema]:
        return [ema for ema in (self.ema, self.encoder_ema) if ema is not None]

    def _swap_averages(self) -> None:
        for ema in self._averages():
            ema.swap()

    def _optimizer_state(self) -> dict[str, NDArray[np.float32]]:
        out: dict[str, NDArray[np.float32]] = {}
        if not self.optimizer.steps:
            return out
        for name, shape in self._shapes.items():
            if name not in self.optimizer.moments["exp_avg"]:
                continue
            out[f"step.{name}"] = np.array(self.optimizer.steps, np.float32)
            for key, moments in self.optimizer.moments.items():
                out[f"{key}.{name}"] = to_folder(moments[name], shape)
        return out

    def _load_optimizer_state(self, saved: Mapping[str, NDArray[np.float32]]) -> None:
        steps = 0
        for name, value in self._trainable().items():
            if f"exp_avg.{name}" not in saved:
                continue
            shape = self._shapes[name]
            for key, wanted in (("step", ()), ("exp_avg", shape), ("exp_avg_sq", shape)):
                found = saved.get(f"{key}.{name}")
                if found is None or found.shape != wanted:
                    raise MdmError(f"training.safetensors: {key}.{name} does not fit; use --init.")
            steps = max(steps, int(saved[f"step.{name}"]))
            for key, moments in self.optimizer.moments.items():
                moments[name] = to_mlx(saved[f"{key}.{name}"], tuple(value.shape))
        self.optimizer.steps = steps


class MlxPictureLearner(MlxLearner[Batch]):
    """Learns the nested loss from captioned pictures."""

    def arrays(self, batch: Batch, part: Part) -> Mapping[str, Any]:
        tables = [t[batch.times + 1].astype(np.float32) for t in self._schedule.tables]
        given: dict[str, Any] = {
            "images": to_image(batch.images),
            "noise": [to_image(noise) for noise in batch.noise],
            "times": mx.array(batch.times.astype(np.int32)),
            "micros": {name: mx.array(value) for name, value in batch.micros.items()},
            "alpha_bar": [mx.array(table)[:, None, None, None] for table in tables],
        }
        if self._encode is not None:
            text = self._encode.inputs(batch.captions, batch.whole)
            # a frozen encoder stays outside the compiled step
            given["text"] = text if self.encoder is not None else self._encode.features(*text)
        if self.config.diffusion.loss_weighting == "vdm":
            weights = vdm_weights(self._schedule.base)[batch.times + 1]
            given["weights"] = mx.array(weights.astype(np.float32))
        return given

    def losses(self, given: Mapping[str, Any]) -> tuple[mx.array, mx.array]:
        features, mask, seen = given.get("text", NO_TEXT)
        if self._encode is not None and self.encoder is not None:
            features, mask, seen = self._encode.features(features, mask, seen)

        def network(x_t: list[mx.array]) -> list[mx.array]:
            return self.net(x_t, given["times"], features, mask, given["micros"], seen)

        config, diffusion = self.config, self.config.diffusion
        if not self.net.training:  # for validation: every level sees all
            diffusion = replace(diffusion, mixed_ratio=None)
        parts = nested_loss(
            network,
            build_pyramid(given["images"], config.model, self._ops),
            given["noise"],
            given["alpha_bar"],
            diffusion,
            config.model.scales,
            self._ops,
            given["share"]["seen"],
        )
        means = given["share"]["mean_seen"]
        levels = [
            m[:n].sum() / mean for m, n, mean in zip(parts.mse, parts.seen, means, strict=True)
        ]
        return batch_loss(parts.per_sample, given.get("weights")), mx.stack(levels)


def process_rank() -> tuple[int, int]:
    """Rank and number of processes; joins the others if mlx.launch started several."""
    try:
        group = mx.distributed.init()
    except RuntimeError as error:
        raise MdmError(
            f"MLX_HOSTFILE: the processes cannot be joined ({error}); start them with mlx.launch."
        ) from None
    return group.rank(), group.size()
