"""How often a value on its way through the code returns to a room that it had already left.

    python -m benchmarks.walks MODEL_FOLDER

A room is a file, so that a flat package and one of folders are measured alike. A profile hook
watches every call. The value is followed by identity: a function that is handed it, or something
that was made from it, is a stop, and so is whatever that function returns. The value is in a room
while a function of that room is on the stack, so calling on a neighbour and coming back leaves no
room. Each function counts once, at its first stop: loops over packages or steps count once. Four
walks: a weight to Core ML, a training job, a batch to its loss, a prompt to a picture.

Read the numbers with care. What a function returns is followed, and its own variables are not, so
dividing a long function into short ones adds stops.
"""

from __future__ import annotations

import importlib
import io
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PLAIN = (str, bytes, int, float, bool, type(None), Path, type)


class Walk:
    """The stops of the first value that `begins` recognises, and of all that is made from it."""

    def __init__(self, begins: Callable[[object], bool]) -> None:
        self.rooms: list[str] = []
        self._begins = begins
        self._followed: dict[int, object] = {}  # held, so that no identity is used twice
        self._seen: set[CodeType] = set()
        self._here: dict[CodeType, str | None] = {}

    def hook(self, frame: FrameType, event: str, value: Any) -> None:
        code = frame.f_code
        if code not in self._here:
            self._here[code] = room_of(Path(code.co_filename))
        room = self._here[code]
        if room is None:
            return
        if event == "call" and any(self._carries(held) for held in arguments(frame)):
            self._stop(frame, room)
        elif event == "return" and (self._carries(value) or code in self._seen):
            self._stop(frame, room)
            if not isinstance(value, PLAIN):
                self._followed[id(value)] = value

    def _carries(self, value: object) -> bool:
        return id(value) in self._followed or self._begins(value)

    def _stop(self, frame: FrameType, room: str) -> None:
        if frame.f_code in self._seen:
            return
        self._seen.add(frame.f_code)
        caller = frame.f_back
        while caller is not None:
            if self._here.get(caller.f_code) == room:
                return  # it never left
            caller = caller.f_back
        self.rooms.append(room)

    @property
    def returns(self) -> int:
        """How often the walk came back to a room that it had left."""
        return len(self.rooms) - len(set(self.rooms))

    def __str__(self) -> str:
        return f"{self.returns} returns, {len(set(self.rooms))} rooms: {' > '.join(self.rooms)}"


def room_of(file: Path) -> str | None:
    """The path of a file below its package; None for commands and for other packages."""
    resolved = file.resolve()
    for package in ("mdm_apple", "conversion"):
        if resolved.is_relative_to(ROOT / package):
            below = resolved.relative_to(ROOT / package).with_suffix("")
            front = below.parts[0] in ("cli", "__init__")
            return None if front else below.as_posix()
    return None


def arguments(frame: FrameType) -> Iterator[object]:
    """The values that a call was handed, and one level into lists, tuples and dictionaries."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    for name in code.co_varnames[:count]:
        value = frame.f_locals.get(name)
        yield value
        if isinstance(value, (list, tuple)):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()


@contextmanager
def followed(begins: Callable[[object], bool]) -> Generator[Walk]:
    walk = Walk(begins)
    sys.setprofile(walk.hook)
    try:
        yield walk
    finally:
        sys.setprofile(None)


def a(name: str) -> Callable[[object], bool]:
    """Recognises instances of the class of that name."""
    return lambda value: type(value).__name__ == name


def weights(value: object) -> bool:
    """Recognises the tensors of a network by name."""
    return type(value) is dict and "conv_in.weight" in value


def walks(folder: Path, out: Path) -> Iterator[tuple[str, Walk]]:
    """Each walk by its name, on a small model folder."""
    with followed(weights) as walk:
        mdm(*f"convert {folder} --layout nested --out {out / 'a.bundle'} --quiet".split())
    yield "a weight to Core ML", walk
    captions = out / "captions.txt"
    captions.write_text("red heart\ngreen apple\nlemon\npanda\n", encoding="utf-8")
    run = f"train --init {folder} --data twemoji --steps 1 --batch-size 4 --workers 0 --quiet"
    shown = ["--captions", str(captions), "--backend", "torch"]
    with followed(a("Job")) as walk:
        mdm(*run.split(), *shown, "--out", str(out / "job"))
    yield "a training job", walk
    with followed(a("Batch")) as walk:
        mdm(*run.split(), *shown, "--out", str(out / "batch"))
    yield "a batch to its loss", walk
    made = f"sample --model {folder} --prompt lemon --seed 1 --steps 1 --backend torch --quiet"
    with followed(a("Prompt")) as walk:
        mdm(*made.split(), "--out", str(out / "lemon.png"))
    yield "a prompt to its picture", walk


def mdm(*words: str) -> None:
    """Run a command in this process, in silence."""
    group: Any = importlib.import_module("mdm_apple.cli").group
    with redirect_stdout(io.StringIO()):
        group.main(list(words), standalone_mode=False)


def main() -> None:
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        for name, walk in walks(folder, Path(scratch)):
            print(f"{name}: {walk}")


if __name__ == "__main__":
    main()
