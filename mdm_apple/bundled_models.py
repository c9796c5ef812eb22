"""The models that come with the package, ready without a download, and how model names are read.

A name is a model folder, a bundle, or a bundled model: `box:emoji`, `box:student`, which makes the
same pictures in one, two or four steps, or `box:motion`, which makes clips.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mdm_apple.config.types import Format, VerifyRuntime
from mdm_apple.errors import MdmError, require_coreai, require_installed

EMOJI = Path(__file__).parent / "models" / "emoji"
EMOJI_STUDENT = EMOJI.with_name("emoji_student")
MOTION = EMOJI.with_name("motion")
BOX = {"box:emoji": EMOJI, "box:student": EMOJI_STUDENT, "box:motion": MOTION}
FORMATS: dict[Format, str] = {"coreml": "Core ML", "coreai": "Core AI"}
MAX_MANIFEST_BYTES = 16 << 20
MADE_FROM = "give the model folder that it was made from"


@dataclass(frozen=True)
class NamedModel:
    """A model that exists on this disk. name: as the caller gave it."""

    name: str
    path: Path
    is_bundle: bool

    def __str__(self) -> str:
        return self.name

    @cached_property
    def format(self) -> Format:
        """The format that a bundle's manifest states; the rest of it is checked when it opens."""
        try:
            with (self.path / "manifest.json").open("rb") as file:
                stated: object = json.loads(file.read(MAX_MANIFEST_BYTES))
        except (OSError, ValueError, RecursionError):
            return "coreml"  # opening the bundle says what is wrong with it
        if isinstance(stated, dict) and stated.get("format") == "coreai":
            return "coreai"
        return "coreml"

    @property
    def runtime(self) -> VerifyRuntime:
        """What runs a bundle on any system."""
        return "coreai" if self.format == "coreai" else "reference"


def find_model(name: str | Path) -> NamedModel:
    """The folder or bundle with this name; reads nothing in it.

    Raises MdmError with the nearest known name.
    """
    path = BOX.get(str(name), Path(name))
    if (path / "manifest.json").is_file():
        return NamedModel(str(name), path, is_bundle=True)
    if (path / "config.json").is_file():
        return NamedModel(str(name), path, is_bundle=False)
    if path.is_file():
        raise MdmError(f"{name}: is a file; give a model folder, a bundle, or box:emoji.")
    if path.is_dir():
        raise MdmError(
            f"{name}: holds no model; expected config.json (a model folder) or manifest.json (a "
            "bundle) in it."
        )
    raise MdmError(f"{name}: no such model; {_hint(str(name))}.")


def find_folder(name: str | Path, instead: str = MADE_FROM) -> NamedModel:
    """Like `find_model`, for commands that need a model folder.

    Args:
        instead: what to do with a bundle: the end of the sentence that refuses it.
    """
    named = find_model(name)
    if named.is_bundle:
        raise MdmError(f"{name}: is a bundle, but this needs a model folder; {instead}.")
    return named


def find_bundle(name: str | Path, instead: str | None = None) -> NamedModel:
    """Like `find_model`, for commands that need a bundle.

    Args:
        instead: what to do with a model folder; None: make a bundle from it.
    """
    named = find_model(name)
    if not named.is_bundle:
        advice = instead or f"make one with mdm convert {name} --out NAME.bundle"
        raise MdmError(f"{name}: is a model folder, but this needs a bundle; {advice}.")
    return named


def require_format(bundle_format: Format, otherwise: str = "") -> None:
    """Refuse, before any work, if a package that bundles of this format need is not installed.

    Args:
        otherwise: see `errors.require_coreai`.
    """
    require_installed("torch", "jsonschema")
    if bundle_format == "coreai":
        require_coreai(otherwise)
    else:
        require_installed("coremltools")


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, [*BOX, *(n.removeprefix("box:") for n in BOX)], n=1)
    if near:
        return f"did you mean box:{near[0].removeprefix('box:')}"
    beside = Path(name).absolute().parent
    if beside.is_dir():
        folders = [p.name for p in beside.iterdir() if p.is_dir()]
        close = difflib.get_close_matches(Path(name).name, folders, n=1)
        if close:
            return f"did you mean {Path(name).with_name(close[0])}"
    return f"give a model folder, a bundle, or one of the box models: {', '.join(BOX)}"
