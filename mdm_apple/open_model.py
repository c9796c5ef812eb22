"""A model by its name, opened on a backend.

Whatever can be refused from the name, the configuration and the request is refused before any
framework is imported.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from mdm_apple.apple_system import require_units
from mdm_apple.bundled_models import FORMATS, NamedModel, require_format
from mdm_apple.config.choices import one_of
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Bits, ComputeUnits, Format, Precision
from mdm_apple.errors import MdmError, require, require_installed
from mdm_apple.sampling.generate import Prompt, Runtime, check_request
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.settings import SampleSettings, SamplingDefaults, read_sampling
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.model_folder import load_model_config, weights_sha256

TrainingBackend = Literal["torch", "mlx"]
Backend = Literal["torch", "mlx", "coreml", "coreai", "reference"]
BUNDLE_BACKENDS: dict[Format, tuple[Backend, ...]] = {
    "coreml": ("reference", "coreml"),
    "coreai": ("coreai",),
}


@dataclass(frozen=True)
class OpenOptions:
    """How to open a model; None: chosen by the machine and the model.

    quantize: bits of Linear layers, MLX only. remember: the only captions that will be used,
    so that MLX can release the text encoder. memory_limit: gigabytes, for MLX. compute_units: of
    a Mac, for a bundle on Core ML or Core AI.
    """

    backend: Backend | None = None
    precision: Precision | None = None
    features: Path | None = None
    text_encoder: Path | None = None
    quantize: Bits | None = None
    remember: tuple[str, ...] | None = None
    memory_limit: float | None = None
    compute_units: ComputeUnits | None = None


@dataclass(frozen=True)
class Loaded:
    """A network in memory.

    sha256: of its weights, empty if unknown. quantized: a sentence about what quantizing cost.
    """

    runtime: Runtime
    sha256: str
    quantized: str | None = None


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

    def load(self, probe: Prompt | None = None, stop_at: int | None = None) -> Loaded:
        """Load the framework and the weights.

        Args:
            probe, stop_at: the prompt and side on which the cost of quantizing is measured.
        """
        if self.named.is_bundle:
            return self._bundle()
        sha256 = weights_sha256(self.named.path) or ""
        if self.backend == "torch":
            return Loaded(self._torch(), sha256)
        runtime, quantized = self._mlx(probe or Prompt("", 0), stop_at)
        return Loaded(runtime, sha256, quantized)

    def _bundle(self) -> Loaded:
        """The runtime on the executor, on Core ML, or on Core AI.

        Without units in the options, Core ML takes the manifest's and Core AI the system's choice.
        """
        from mdm_apple.conversion.coreai.runtime import AppleRuntime
        from mdm_apple.conversion.run.coreml import core_ml
        from mdm_apple.conversion.run.runtime import open_bundle_runtime

        path, features = self.named.path, self.options.features
        units = self.options.compute_units
        load = core_ml(units) if self.backend == "coreml" else None
        if self.backend == "coreai" and units is not None:
            load = AppleRuntime(units)
        return Loaded(*open_bundle_runtime(path, self.precision, features, load))

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
    one_of("backend", options.backend, Backend)
    one_of("precision", options.precision, Precision)
    one_of("quantize", options.quantize, Bits)
    one_of("compute-units", options.compute_units, ComputeUnits)
    backend = options.backend or (named.runtime if named.is_bundle else default_backend())
    precision = options.precision or ("fp16" if named.is_bundle else "fp32")
    fitting = BUNDLE_BACKENDS[named.format] if named.is_bundle else get_args(TrainingBackend)
    if backend not in fitting:
        kind = "a model folder"
        if named.is_bundle:
            kind = f"a bundle of {FORMATS[named.format]} packages"
        raise MdmError(
            f"backend: {named} is {kind}, which runs on {' or '.join(fitting)}, not {backend}."
        )
    if backend in ("coreml", "coreai") and precision != "fp16":
        raise MdmError(
            f"precision: {FORMATS[named.format]} runs packages as they are, in fp16, not "
            f"{precision}."
        )
    for name, value in (
        ("quantize", options.quantize),
        ("low-memory", options.remember),
        ("memory-limit", options.memory_limit),
    ):
        if value is not None and backend != "mlx":
            raise MdmError(f"{name}: works with the backend mlx only, not {backend}.")
    if options.compute_units is not None:
        _require_units(backend)
    for path in (options.features, options.text_encoder):
        if path is not None and not path.exists():
            raise MdmError(f"{path}: no such file or folder.")
    if named.is_bundle:
        require_format(named.format)
    else:
        require_installed(backend)
    config = load_model_config(named.path)
    defaults = read_sampling(named.path, config.distilled)
    return Opening(named, config, defaults, backend, precision, options)


def _require_units(backend: Backend) -> None:
    """Refuse compute units where nothing chooses them."""
    if backend not in ("coreml", "coreai"):
        raise MdmError(
            f"compute-units: belong to a bundle on coreml or coreai; {backend} has none, so leave "
            "them out."
        )
    if backend == "coreai":
        require_units()
    if sys.platform != "darwin":
        raise MdmError("compute-units: Core ML has them on a Mac only; leave them out.")


def default_backend() -> TrainingBackend:
    """MLX on Apple silicon, PyTorch elsewhere; the other if only that is installed."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    first: TrainingBackend = "mlx" if apple else "torch"
    second: TrainingBackend = "torch" if apple else "mlx"
    if importlib.util.find_spec(first) is None and importlib.util.find_spec(second) is not None:
        return second
    return first
