"""Where `mdm sample` puts its pictures: names, what is there already, and one file at a time."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mdm_apple.cli.output import refuse_existing
from mdm_apple.clip_file.write import LOSSLESS, check_clip_name, clip_bytes
from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.decode import AllFrames
from mdm_apple.data.clips.decoder import decoders
from mdm_apple.errors import MdmError, system_reason
from mdm_apple.sampling.generate import Prompt
from mdm_apple.sampling.picture import Picture
from mdm_apple.sampling.pictures import (
    Recipe,
    as_png,
    contact_sheet,
    read_recipe,
    save_png,
    tile,
)
from mdm_apple.storage.files import (
    FileError,
    atomic_file,
    is_system_file,
    locked_place,
    occupied,
    partial_name,
    remove_empty,
)

OTHER_FILES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MOVIES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")
GRID_COLUMNS = 8
PICTURE, STRIP = ".png", "_steps"  # how the names of pictures, and the stems of previews, end


def begun_seed(out: Path | None, texts: Sequence[str], negative: str) -> int | None:
    """The seed of an interrupted command for these prompts, from the pictures in its folder.

    None if there are none, or if they have other prompts or several seeds.
    """
    if out is None or not out.is_dir():
        return None
    seeds = set[int]()
    for path in sorted(out.glob(f"[0-9][0-9][0-9][0-9]*_*{PICTURE}")):
        if path.stem.endswith(STRIP):
            continue
        try:
            recipe = read_recipe(path)
        except MdmError:
            return None
        if recipe.prompt not in texts or recipe.negative != negative:
            return None
        seeds.add(recipe.seed)
    return seeds.pop() if len(seeds) == 1 else None


@dataclass(frozen=True)
class PictureFiles:
    """Where the pictures go: a path for each, and one for the grid of a folder.

    fps: frames a second of clips; None for pictures. sheet: where the frames of all clips go.
    grows: a folder without a grid, where the same command may go on at any time.
    """

    folder: Path
    paths: tuple[Path, ...]
    grid: Path | None
    previews: bool
    overwrite: bool
    fps: float | None = None
    sheet: Path | None = None
    grows: bool = False

    @classmethod
    def of(
        cls,
        out: Path | None,
        prompts: Sequence[Prompt],
        previews: bool,
        overwrite: bool,
        fps: float | None = None,
        sheet: Path | None = None,
        grows: bool = False,
    ) -> PictureFiles:
        """Refuses unusable names and files that exist, but not an interrupted run of the same."""
        files = cls._of(out, prompts, previews, overwrite, fps, sheet, grows)
        _check_sheet(files, overwrite)
        return files

    @classmethod
    def _of(
        cls,
        out: Path | None,
        prompts: Sequence[Prompt],
        previews: bool,
        overwrite: bool,
        fps: float | None,
        sheet: Path | None,
        grows: bool,
    ) -> PictureFiles:
        if out is None:
            taken: set[Path] = set()
            paths = tuple(_free(Path(_slug(p)), taken, previews) for p in prompts)
            return cls(Path(), paths, None, previews, overwrite, fps, sheet)
        if grows and out.suffix.lower() in (PICTURE, *OTHER_FILES, *MOVIES):
            raise MdmError(f"out: --prompts needs a folder, got the file {out}.")
        if out.suffix.lower() in (PICTURE, *OTHER_FILES, *MOVIES):
            if fps is not None:
                check_clip_name(out, fps)
            elif out.suffix.lower() != PICTURE:
                raise MdmError(f"out: pictures are written as .png, got {out}.")
            if len(prompts) > 1:
                what = "pictures" if fps is None else "clips"
                raise MdmError(f"out: {len(prompts)} {what} need a folder, got the file {out}.")
            refuse_existing(out, overwrite)
            if previews:
                refuse_existing(strip_of(out), overwrite)
            return cls(out.parent, (out,), None, previews, overwrite, fps, sheet)
        paths = tuple(out / f"{k:04d}_{_slug(p)}.png" for k, p in enumerate(prompts))
        grid = None if grows else out / "grid.png"
        files = cls(out, paths, grid, previews, overwrite, fps, sheet, grows)
        if not files.interrupted:
            refuse_existing(out, overwrite)
        return files

    @property
    def in_folder(self) -> bool:
        """Whether the pictures have a folder of their own."""
        return self.grid is not None or self.grows

    @property
    def interrupted(self) -> bool:
        """Whether the folder holds some of these pictures and nothing else: the grid comes last.

        What a killed process was writing counts as well.
        """
        if not self.in_folder or not self.folder.is_dir() or not occupied(self.folder):
            return False
        ours = {path.name for path in (*self.paths, *map(strip_of, self.paths))}
        begun = ours if self.grid is None else {*ours, self.grid.name}
        names = [item.name for item in self.folder.iterdir() if not is_system_file(item.name)]
        return all(name in ours or partial_name(name) in begun for name in names)

    @contextmanager
    def owned(self) -> Generator[None]:
        """Make the folder of the pictures, and own it: two commands in one would mix theirs.

        Raises MdmError. A folder that stays empty is removed.
        """
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            with ExitStack() as kept:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    alone = not self.in_folder or kept.enter_context(locked_place(self.folder))
                except OSError as error:
                    reason = system_reason(error)
                    raise FileError(f"{self.folder}: cannot be written; {reason}") from None
                if not alone:
                    raise MdmError(
                        f"{self.folder}: another command is making pictures there; choose another "
                        "--out, or wait for it."
                    )
                yield
        finally:
            remove_empty(missing)

    def remarks(self) -> list[str]:
        """What a kind of file does to a clip."""
        suffix = self.paths[0].suffix.lower()
        if self.fps is None or suffix in LOSSLESS:
            return []
        if suffix == ".gif":
            return ["out: a GIF holds 256 colours; .png and .webp keep a clip as it was made."]
        return ["out: a movie holds a clip enlarged and not exactly; .png and .webp keep it."]

    def done(self, recipes: Sequence[Recipe]) -> set[int]:
        """The pictures that are there already, made as asked. Raises MdmError for others."""
        if self.overwrite or not self.in_folder:
            return set()
        if not self.interrupted:  # another command may have filled it since it was looked at
            refuse_existing(self.folder, self.overwrite)
            return set()
        found: set[int] = set()
        for k, (path, recipe) in enumerate(zip(self.paths, recipes, strict=True)):
            if not path.exists():
                continue
            if read_recipe(path) != recipe:
                raise MdmError(
                    f"{path}: exists and was made in another way; choose another --out or add "
                    "--overwrite."
                )
            if not self.previews or strip_of(path).is_file():
                found.add(k)
        return found

    def write(self, k: int, picture: Picture) -> None:
        """Write one picture as soon as it is made; raises FileError."""
        try:
            if picture.previews:  # before the picture, which says that all is there
                with atomic_file(strip_of(self.paths[k])) as file:
                    file.write(picture.strip)
            picture.save(self.paths[k])
            if self.sheet is not None and not self._sheet_comes_last:
                self._write_sheet(self.sheet, [picture.frames])
        except OSError as error:
            raise FileError(f"{self.folder}: cannot be written; {system_reason(error)}") from None

    def finish(self) -> list[str]:
        """Write the grid of a folder; returns the paths of all files."""
        strips = [strip_of(path) for path in self.paths] if self.previews else []
        names = [
            path for pair in itertools.zip_longest(self.paths, strips) for path in pair if path
        ]
        sheet = self.sheet if self._sheet_comes_last else None
        clips = self._read() if self.grid is not None or sheet is not None else []
        if self.grid is not None:
            with atomic_file(self.grid) as file:
                file.write(self._grid(clips))
            names.append(self.grid)
        if sheet is not None:
            self._write_sheet(sheet, clips)
        if self.sheet is not None:
            names.append(self.sheet)
        return [str(name) for name in names]

    @property
    def _sheet_comes_last(self) -> bool:
        """Whether the sheet is made of files; a single one may hold its frames less exactly."""
        return self.grid is not None or len(self.paths) > 1

    def _read(self) -> list[Pixels]:
        """The frames (N, H, W, 3) of each file; of a picture, one.

        Another process decodes clips: an interrupted command has left some of them.
        """
        if self.fps is None:
            return [_picture(path) for path in self.paths]
        asked = AllFrames(self.fps)
        with decoders(1) as processes:
            return [processes.decode(path, asked).pixels for path in self.paths]

    def _grid(self, clips: Sequence[Pixels]) -> bytes:
        """All pictures in one, or all clips, which then run side by side."""
        shown = np.stack(clips, axis=1)
        tiled = np.stack([tile(moment, min(GRID_COLUMNS, len(moment))) for moment in shown])
        return as_png(tiled[0]) if self.fps is None else clip_bytes(tiled, self.fps, PICTURE)

    def _write_sheet(self, sheet: Path, clips: Sequence[Pixels]) -> None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        save_png(sheet, contact_sheet(clips))


def strip_of(picture: Path) -> Path:
    """Where the previews of a picture go."""
    return picture.with_name(f"{picture.stem}{STRIP}{PICTURE}")


def _picture(path: Path) -> Pixels:
    with Image.open(path, formats=("PNG",)) as image:
        return np.asarray(image)[None]


def _check_sheet(files: PictureFiles, overwrite: bool) -> None:
    sheet = files.sheet
    if sheet is None:
        return
    if sheet.suffix.lower() != PICTURE:
        raise MdmError(f"sheet: a contact sheet is written as .png, got {sheet}.")
    others = {*files.paths, *map(strip_of, files.paths), *([files.grid] if files.grid else [])}
    if sheet.resolve() in {other.resolve() for other in others}:
        raise MdmError(f"sheet: {sheet} is another file of this command; choose another name.")
    refuse_existing(sheet, overwrite, "--sheet")


def _free(stem: Path, taken: set[Path], with_strip: bool) -> Path:
    """`stem.png`, or with the next number that is free for the picture and its strip."""
    for end in _endings():
        path = stem.with_name(f"{stem.name}{end}.png")
        files = {path, strip_of(path)} if with_strip else {path}
        if not files & taken and not any(file.exists() for file in files):
            taken |= files
            return path
    raise AssertionError("there is always another number")


def _endings() -> Iterator[str]:
    yield ""
    yield from (f"_{number}" for number in itertools.count(2))


def _slug(prompt: Prompt) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in prompt.text.lower())
    return f"{'-'.join(filter(None, kept.split('-')))[:40] or 'empty'}_{prompt.seed}"
