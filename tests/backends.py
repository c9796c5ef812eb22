"""What the golden and parity tests need of a backend; arrays cross as NumPy in (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.diffusion.ops import Ops
from mdm_apple.sampling.generate import Runtime
from mdm_apple.text.tokenizer import Tokenizer
from mdm_apple.training.boot import BootBatch, BootConfig
from mdm_apple.training.distill import DistillJob
from mdm_apple.training.learner import Learner, PictureLearner
from mdm_apple.training.settings import TrainConfig
from mdm_apple.training.start import Job, Start

# (noisy states per level, table index of each row) -> predictions per level
NumpyTeacher = Callable[[list[np.ndarray], np.ndarray], list[np.ndarray]]


class Backend(Protocol):
    name: str
    ops: Ops

    def network(self, config: UNetConfig, state: Mapping[str, np.ndarray]) -> Any: ...
    def learner(
        self,
        config: ModelConfig,
        train: TrainConfig,
        state: Mapping[str, np.ndarray],
        text: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> PictureLearner: ...
    def open_learner(
        self, config: ModelConfig, job: Job, tokenizer: Tokenizer | None, start: Start
    ) -> PictureLearner:
        """What `fit` is handed: on the CPU, so that runs repeat bit for bit."""
        ...

    def boot_learner(
        self,
        config: ModelConfig,
        train: TrainConfig,
        boot: BootConfig,
        state: Mapping[str, np.ndarray],
        teacher: NumpyTeacher,
    ) -> Learner[BootBatch]:
        """A student without text that learns from a teacher of NumPy arrays."""
        ...

    def open_boot_learner(self, config: ModelConfig, job: DistillJob) -> Learner[BootBatch]:
        """What `distill` is handed, on the CPU."""
        ...

    def runtime(self, folder: Path) -> Runtime:
        """A model folder opened for sampling, on the CPU."""
        ...

    def initial_state(self, config: UNetConfig, seed: int) -> dict[str, np.ndarray]:
        """Weights of a network that was just built."""
        ...

    def image(self, x: np.ndarray) -> Any: ...
    def array(self, x: np.ndarray) -> Any: ...
    def numpy(self, x: Any) -> np.ndarray: ...


class TorchBackend:
    name = "torch"

    def __init__(self) -> None:
        from mdm_apple.torch.ops import TorchOps

        self.ops = TorchOps()

    def network(self, config: UNetConfig, state: Mapping[str, np.ndarray]) -> Any:
        import torch

        from mdm_apple.torch.nested_unet import build_unet

        net = build_unet(config)
        net.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()})
        return net.eval()

    def learner(
        self,
        config: ModelConfig,
        train: TrainConfig,
        state: Mapping[str, np.ndarray],
        text: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> PictureLearner:
        from mdm_apple.torch.learner import TorchPictureLearner

        def encode(
            captions: Sequence[str], beside: Sequence[str] | None = None
        ) -> tuple[Any, Any, None]:
            values, mask = text()
            return self.array(values), self.array(mask), None

        return TorchPictureLearner(self.network(config.model, state), config, train, encode)

    def open_learner(
        self, config: ModelConfig, job: Job, tokenizer: Tokenizer | None, start: Start
    ) -> PictureLearner:
        import torch

        from mdm_apple.torch.open_run import open_learner

        return open_learner(config, job, tokenizer, start, torch.device("cpu"))

    def boot_learner(
        self,
        config: ModelConfig,
        train: TrainConfig,
        boot: BootConfig,
        state: Mapping[str, np.ndarray],
        teacher: NumpyTeacher,
    ) -> Learner[BootBatch]:
        from mdm_apple.torch.boot import TorchBootLearner

        def predict(x_t: Sequence[Any], t: np.ndarray) -> list[Any]:
            return [self.array(x) for x in teacher([self.numpy(x) for x in x_t], t)]

        net = self.network(config.model, state)
        return TorchBootLearner(net, lambda *_: predict, config, train, boot)

    def open_boot_learner(self, config: ModelConfig, job: DistillJob) -> Learner[BootBatch]:
        import torch

        from mdm_apple.torch.boot import open_boot_learner

        return open_boot_learner(config, job, torch.device("cpu"))

    def runtime(self, folder: Path) -> Runtime:
        import torch

        from mdm_apple.torch.load import open_runtime

        return open_runtime(folder, device=torch.device("cpu"))

    def initial_state(self, config: UNetConfig, seed: int) -> dict[str, np.ndarray]:
        import torch

        from mdm_apple.torch.nested_unet import build_unet

        torch.manual_seed(seed)
        return {k: v.numpy() for k, v in build_unet(config).state_dict().items()}

    def image(self, x: np.ndarray) -> Any:
        return self.array(x)

    def array(self, x: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(x))

    def numpy(self, x: Any) -> np.ndarray:
        return x.detach().numpy()


class MlxBackend:
    name = "mlx"

    def __init__(self) -> None:
        from mdm_apple.mlx.ops import MlxOps

        self.ops = MlxOps()

    def network(self, config: UNetConfig, state: Mapping[str, np.ndarray]) -> Any:
        from mdm_apple.mlx.nested_unet import build_unet
        from mdm_apple.mlx.weights import load_weights

        net = build_unet(config)
        load_weights(net, state)
        return net.eval()

    def learner(
        self,
        config: ModelConfig,
        train: TrainConfig,
        state: Mapping[str, np.ndarray],
        text: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> PictureLearner:
        from mdm_apple.mlx.learner import MlxPictureLearner

        class Given:
            """Features that a test hands in instead of captions."""

            encoder = None

            def inputs(
                self, captions: Sequence[str], beside: Sequence[str] | None = None
            ) -> tuple[Any, Any, None]:
                values, mask = text()
                return mx.array(values), mx.array(mask), None

            def features(self, values: Any, mask: Any, seen: Any) -> tuple[Any, Any, Any]:
                return values, mask, seen

        import mlx.core as mx

        return MlxPictureLearner(self.network(config.model, state), config, train, Given())

    def open_learner(
        self, config: ModelConfig, job: Job, tokenizer: Tokenizer | None, start: Start
    ) -> PictureLearner:
        from mdm_apple.mlx.open_run import open_learner

        return open_learner(config, job, tokenizer, start)

    def boot_learner(
        self,
        config: ModelConfig,
        train: TrainConfig,
        boot: BootConfig,
        state: Mapping[str, np.ndarray],
        teacher: NumpyTeacher,
    ) -> Learner[BootBatch]:
        from mdm_apple.mlx.boot import MlxBootLearner

        def predict(x_t: Sequence[Any], t: np.ndarray) -> list[Any]:
            return [self.image(x) for x in teacher([self.numpy(x) for x in x_t], t)]

        net = self.network(config.model, state)
        return MlxBootLearner(net, lambda *_: predict, config, train, boot)

    def open_boot_learner(self, config: ModelConfig, job: DistillJob) -> Learner[BootBatch]:
        from mdm_apple.mlx.boot import open_boot_learner

        return open_boot_learner(config, job)

    def runtime(self, folder: Path) -> Runtime:
        from mdm_apple.mlx.load import open_runtime

        return open_runtime(folder)

    def initial_state(self, config: UNetConfig, seed: int) -> dict[str, np.ndarray]:
        import mlx.core as mx

        from mdm_apple.config.shapes import state_shapes
        from mdm_apple.mlx.nested_unet import build_unet
        from mdm_apple.mlx.weights import flat, save_weights

        mx.random.seed(seed)
        values = flat(build_unet(config).parameters())
        return save_weights(values, state_shapes(config))

    def image(self, x: np.ndarray) -> Any:
        return self.array(x.transpose(0, 2, 3, 1))

    def array(self, x: np.ndarray) -> Any:
        import mlx.core as mx

        return mx.array(np.ascontiguousarray(x))

    def numpy(self, x: Any) -> np.ndarray:
        out = np.array(x)
        return out.transpose(0, 3, 1, 2) if out.ndim == 4 else out


BACKENDS: dict[str, Callable[[], Backend]] = {"torch": TorchBackend, "mlx": MlxBackend}


def predict(
    backend: Backend,
    net: Any,
    x_t: Sequence[Any],
    times: np.ndarray,
    text: np.ndarray | None,
    mask: np.ndarray | None,
    micros: Mapping[str, np.ndarray],
) -> list[Any]:
    """One forward pass from NumPy conditions and backend images."""
    return net(
        list(x_t),
        backend.array(times),
        None if text is None else backend.array(text),
        None if mask is None else backend.array(mask),
        {k: backend.array(v) for k, v in micros.items()},
    )
