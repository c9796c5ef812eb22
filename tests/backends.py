"""What the golden and parity tests need of a backend; arrays cross as NumPy in (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mdm_apple.config import ModelConfig, UNetConfig
from mdm_apple.ops import Ops
from mdm_apple.training import Stepper, TrainConfig


class Backend(Protocol):
    name: str
    ops: Ops

    def network(self, config: UNetConfig, state: Mapping[str, np.ndarray]) -> Any: ...
    def stepper(
        self,
        config: ModelConfig,
        train: TrainConfig,
        state: Mapping[str, np.ndarray],
        text: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> Stepper: ...
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

    def stepper(
        self,
        config: ModelConfig,
        train: TrainConfig,
        state: Mapping[str, np.ndarray],
        text: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> Stepper:
        from mdm_apple.torch.train import TorchStepper

        def encode(_: Sequence[str]) -> tuple[Any, Any]:
            values, mask = text()
            return self.array(values), self.array(mask)

        return TorchStepper(self.network(config.model, state), config, train, encode)

    def image(self, x: np.ndarray) -> Any:
        return self.array(x)

    def array(self, x: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(x))

    def numpy(self, x: Any) -> np.ndarray:
        return x.detach().numpy()


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
