"""What a folder holds for a model: pictures, or clips. Names alone decide here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Kind:
    """one: what a sentence calls one of them. suffixes: of their files, in small letters."""

    one: str
    suffixes: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Whether a file of this name is one."""
        return PurePosixPath(name).suffix.lower() in self.suffixes

    @property
    def listed(self) -> str:
        """The suffixes as part of a sentence."""
        return f"{' '.join(self.suffixes[:-1])} or {self.suffixes[-1]}"


PICTURES = Kind("picture", (".png", ".jpg", ".jpeg", ".webp", ".bmp"))
MOVIES = (".mp4", ".mov", ".m4v", ".webm", ".mkv")  # that PyAV reads
CLIPS = Kind("clip", (".gif", ".webp", ".png", *MOVIES))


def is_picture_or_clip(name: str) -> bool:
    """Whether a name in a table is that of what captions are about."""
    return PICTURES.has(name) or CLIPS.has(name)
