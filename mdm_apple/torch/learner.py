"""One optimisation step in PyTorch, on one process or on several (torchrun)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Generic

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from mdm_apple.config.model import DiffusionConfig, ModelConfig
from mdm_apple.data.batches import Batch
from mdm_apple.diffusion.loss import LossParts, batch_loss, nested_loss
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.diffusion.schedule import build_schedule, vdm_weights
from mdm_apple.errors import MdmError
from mdm_apple.torch.dropout import draw_by_row, dropouts_of
from mdm_apple.torch.ema import Ema
from mdm_apple.torch.ops import TorchOps
from mdm_apple.torch.processes import all_reduce, process_rank
from mdm_apple.torch.runtime import TorchRuntime
from mdm_apple.torch.text import NO_TEXT, EncodeText
from mdm_apple.torch.unet import UNet
from mdm_apple.training.dropout import row_seeds
from mdm_apple.training.learner import Rows, Snapshot, StepMetrics, split_rows
from mdm_apple.training.parts import Part, parts_of, whole
from mdm_apple.training.settings import TrainConfig, ema_decay_at, learning_rate


@dataclass(frozen=True)
class Losses:
    """The loss of some rows and its parts: squared errors per level (rows,), and rows seen."""

    total: Tensor
    mse: list[Tensor]
    seen: list[int]
    extra: dict[str, Tensor] = field(default_factory=dict)  # logged as well


class TorchLearner(ABC, Generic[Rows]):
    """Network, optional text encoder, AdamW and their averages; `losses` is the objective.

    Args:
        net: already on its device. encoder: trained with the network, if given.
        encode: maps captions to features, through `encoder` or from a cache; None without text.
        dropout_by_row: see `training.dropout`.
    """

    def __init__(
        self,
        net: UNet,
        config: ModelConfig,
        train: TrainConfig,
        encode: EncodeText | None = None,
        encoder: nn.Module | None = None,
        dropout_by_row: bool = False,
    ) -> None:
        # before the optimiser: the layout of its moments must stay the weights' layout
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net, self.encoder, self._encode = net, encoder, encode
        self.config, self.train = config, train
        self.device = next(net.parameters()).device
        self.rank, self.world = process_rank()
        self._ops = TorchOps()
        for level in net.level_modules():
            level.checkpointing = train.checkpointing
        self._dropouts = dropouts_of(net, encoder) if dropout_by_row else []
        self.dropout_by_row = bool(self._dropouts)
        self.optimizer = _optimizer(net, encoder, train)
        self.ema = Ema(net) if train.ema_decay is not None else None
        self.encoder_ema = Ema(encoder) if encoder and train.ema_decay is not None else None
        if self.world > 1:
            self._broadcast()

    @abstractmethod
    def losses(self, batch: Rows, part: Part) -> Losses:
        """Mean loss of some rows, with its parts; part: which of the whole batch they are."""

    def step(self, batch: Rows, index: int) -> StepMetrics:
        self._set_mode(training=True)
        seed = (self.train.seed << 40) + (index << 12) + self.rank  # for dropout of older runs
        torch.manual_seed(seed % 2**63)
        self.optimizer.zero_grad(set_to_none=True)
        losses, levels = [], []
        names: list[str] = []
        shares = parts_of(self.train, self.rank, self.world)
        for rows, part in zip(split_rows(batch, shares), shares, strict=True):
            if self.dropout_by_row:
                draw_by_row(self._dropouts, row_seeds(self.train.seed, index, part.rows))
            parts = self.losses(rows, part)
            # exactly the number of parts if they are even
            (parts.total / (self.train.accumulate / part.weight)).backward()
            losses.append(parts.total.detach() * part.weight)
            means = part.mean_seen(self.config.diffusion.mixed_fractions or (1.0,) * len(parts.mse))
            shown = [
                m.detach()[:n].sum() / mean
                for m, n, mean in zip(parts.mse, parts.seen, means, strict=True)
            ]
            shown += [value.detach() * part.weight for value in parts.extra.values()]
            levels.append(torch.stack(shown))
            names = list(parts.extra)
        parameters = [p for p in self._parameters() if p.grad is not None]
        loss = torch.stack(losses).sum() / self.train.accumulate
        level_losses = torch.stack(levels).sum(dim=0) / self.train.accumulate
        if self.world > 1:
            _average_gradients(parameters, self.world)
            summary = torch.cat([loss[None], level_losses])
            all_reduce(summary)
            loss, level_losses = summary[0] / self.world, summary[1:] / self.world
        norm = nn.utils.clip_grad_norm_(parameters, self.train.clip_norm, foreach=True)
        rate = learning_rate(self.train, index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimizer.step()
        self._update_averages(index)
        numbers = level_losses.tolist()
        count = len(numbers) - len(names)
        extra = dict(zip(names, numbers[count:], strict=True))
        return StepMetrics(float(loss), tuple(numbers[:count]), float(norm), extra)

    @torch.no_grad()
    def validate(self, batch: Rows) -> float:
        self._set_mode(training=False)
        self._swap_averages()
        try:
            loss = self.losses(batch, whole(len(batch))).total
        finally:
            self._swap_averages()
        return float(loss)

    def totals(self, numbers: Sequence[float]) -> list[float]:
        if self.world == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float32, device=self.device)
        all_reduce(sums)
        return sums.tolist()

    def same_everywhere(self, number: int) -> bool:
        if self.world == 1:
            return True
        ends = torch.tensor([number, -number], device=self.device)
        all_reduce(ends, dist.ReduceOp.MAX)
        return int(ends.sum()) == 0

    def any_asked(self, asked: bool) -> bool:
        if self.world == 1:
            return asked
        flag = torch.tensor(float(asked), device=self.device)
        all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    @contextmanager
    def averaged(self) -> Generator[TorchRuntime]:
        """A context in which the network has its averaged weights, for sampling."""
        self._set_mode(training=False)
        self._swap_averages()
        try:
            yield TorchRuntime(self.config, self.net, self._encode, self.device)
        finally:
            self._swap_averages()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            weights=to_numpy(self.net.state_dict()),
            ema=to_numpy(self.ema.weights) if self.ema else None,
            encoder=to_numpy(self.encoder.state_dict()) if self.encoder else None,
            encoder_ema=to_numpy(self.encoder_ema.weights) if self.encoder_ema else None,
            optimizer=self._optimizer_state(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same configuration."""
        self.net.load_state_dict(to_torch(snapshot.weights))
        if self.encoder is not None and snapshot.encoder is not None:
            self.encoder.load_state_dict(to_torch(snapshot.encoder))
        if self.ema and snapshot.ema is not None:
            self.ema.load(to_torch(snapshot.ema))
        if self.encoder_ema and snapshot.encoder_ema is not None:
            self.encoder_ema.load(to_torch(snapshot.encoder_ema))
        self._load_optimizer_state(snapshot.optimizer)

    def _image(self, x: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(x).to(self.device, memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16"
        )

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _set_mode(self, training: bool) -> None:
        self.net.train(training)
        if self.encoder is not None:
            self.encoder.train(training)

    def _update_averages(self, index: int) -> None:
        decay = ema_decay_at(self.train, index)
        for ema in (self.ema, self.encoder_ema):
            if ema:
                ema.update(decay)

    def _swap_averages(self) -> None:
        for ema in (self.ema, self.encoder_ema):
            if ema:
                ema.swap()

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        own = list(self.net.named_parameters())
        if self.encoder is not None:
            own += [(f"text_encoder.{k}", p) for k, p in self.encoder.named_parameters()]
        return own

    def _optimizer_state(self) -> dict[str, NDArray[np.float32]]:
        out: dict[str, NDArray[np.float32]] = {}
        for name, parameter in self._named():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                out[f"{key}.{name}"] = value.detach().float().cpu().numpy().copy()
        return out

    def _load_optimizer_state(self, saved: Mapping[str, NDArray[np.float32]]) -> None:
        for name, parameter in self._named():
            if f"exp_avg.{name}" not in saved:
                continue
            shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            for key, shape in shapes.items():
                value = saved.get(f"{key}.{name}")
                if value is None or value.shape != shape:
                    raise MdmError(f"training.safetensors: {key}.{name} does not fit; use --init.")
            state = self.optimizer.state[parameter]
            state["step"] = torch.tensor(float(saved[f"step.{name}"]), device=parameter.device)
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.empty_like(parameter)
                state[key].copy_(torch.from_numpy(saved[f"{key}.{name}"]))

    def _broadcast(self) -> None:
        for parameter in self._named():
            dist.broadcast(parameter[1].data, src=0)


class TorchPictureLearner(TorchLearner[Batch]):
    """Learns the nested loss from captioned pictures."""

    def __init__(
        self,
        net: UNet,
        config: ModelConfig,
        train: TrainConfig,
        encode: EncodeText | None = None,
        encoder: nn.Module | None = None,
        dropout_by_row: bool = False,
    ) -> None:
        super().__init__(net, config, train, encode, encoder, dropout_by_row)
        scales, unmixed = config.model.scales, replace(config.diffusion, mixed_ratio=None)
        self._objective = Objective(config.diffusion, scales, self.device)
        self._whole = Objective(unmixed, scales, self.device)  # validation: all levels see all

    def losses(self, batch: Batch, part: Part) -> Losses:
        times = torch.from_numpy(batch.times).to(self.device)
        micros = {k: torch.from_numpy(v).to(self.device) for k, v in batch.micros.items()}
        autocast = self._autocast()

        def network(x_t: list[Tensor]) -> list[Tensor]:
            with autocast:
                text = self._encode(batch.captions, batch.whole) if self._encode else NO_TEXT
                features, mask, seen = text
                return self.net(x_t, times, features, mask, micros, seen)

        x0 = build_pyramid(self._image(batch.images), self.config.model, self._ops)
        eps = [self._image(noise) for noise in batch.noise]
        objective = self._objective if self.net.training else self._whole
        parts = objective(network, x0, eps, batch.times, self._ops, part)
        weights = objective.sample_weights(batch.times)
        return Losses(batch_loss(parts.per_sample, weights), parts.mse, parts.seen)


class Objective:
    """The loss of a model configuration, with its tables on a device."""

    def __init__(
        self, config: DiffusionConfig, scales: tuple[int, ...], device: torch.device
    ) -> None:
        self._config, self._scales, self._device = config, scales, device
        self._schedule = build_schedule(config.schedule, scales)

    def __call__(
        self,
        network: Callable[[list[Tensor]], Sequence[Tensor]],
        x0: Sequence[Tensor],
        eps: Sequence[Tensor],
        times: NDArray[np.int64],
        ops: TorchOps,
        part: Part,
    ) -> LossParts:
        """times (B,): the network's input; the table index is one more."""
        tables = [t[times + 1].astype(np.float32) for t in self._schedule.tables]
        alpha_bar = [torch.from_numpy(t).to(self._device)[:, None, None, None] for t in tables]
        seen = part.seen(self._config.mixed_fractions or (1.0,) * len(x0))
        return nested_loss(network, x0, eps, alpha_bar, self._config, self._scales, ops, seen)

    def sample_weights(self, times: NDArray[np.int64]) -> Tensor | None:
        """Weights (B,) of whole samples, if the configuration uses variational weighting."""
        if self._config.loss_weighting != "vdm":
            return None
        weights = vdm_weights(self._schedule.base)[times + 1].astype(np.float32)
        return torch.from_numpy(weights).to(self._device)


def _optimizer(net: nn.Module, encoder: nn.Module | None, train: TrainConfig) -> torch.optim.AdamW:
    plain, embeddings = [p for p in net.parameters() if p.requires_grad], []
    for name, parameter in encoder.named_parameters() if encoder is not None else ():
        (embeddings if name == "shared.weight" else plain).append(parameter)
    groups = [
        {"params": plain, "lr_scale": 1.0},
        {"params": embeddings, "lr_scale": train.embedding_lr_scale},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        eps=1e-8,
        weight_decay=train.weight_decay,
        fused=True,
    )


def _average_gradients(parameters: Sequence[nn.Parameter], world: int) -> None:
    """Mean over processes, as one message."""
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    all_reduce(flat)
    flat /= world
    offset = 0
    for parameter in parameters:
        assert parameter.grad is not None
        size = parameter.grad.numel()
        parameter.grad.copy_(flat[offset : offset + size].view(parameter.grad.shape))
        offset += size


def to_numpy(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {k: v.detach().float().cpu().contiguous().numpy().copy() for k, v in tensors.items()}


def to_torch(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
