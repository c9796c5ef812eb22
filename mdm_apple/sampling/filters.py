"""The caller's own checks of prompts and pictures. None ships with the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mdm_apple.config.types import Pixels
from mdm_apple.errors import MdmError


class FilteredError(MdmError):
    """A prompt or a picture that the caller's filter refused."""


class Filter(Protocol):
    """Sees every prompt before sampling and every preview and picture after; None lets it pass."""

    def refusal_of_prompt(self, prompt: str) -> str | None:
        """The reason to refuse the prompt."""
        ...

    def refusal_of_picture(self, picture: Pixels) -> str | None:
        """The reason to refuse the picture (H, W, 3)."""
        ...


def check_prompts(filters: Sequence[Filter], prompts: Sequence[str]) -> None:
    """Raises FilteredError for the first prompt that a filter refuses."""
    for filter_ in filters:
        for prompt in prompts:
            if (reason := filter_.refusal_of_prompt(prompt)) is not None:
                raise FilteredError(f"prompt: {prompt!r} was refused ({reason}).")


def check_pictures(filters: Sequence[Filter], pictures: Sequence[Pixels]) -> None:
    """Raises FilteredError for the first picture that a filter refuses."""
    for filter_ in filters:
        for picture in pictures:
            if (reason := filter_.refusal_of_picture(picture)) is not None:
                raise FilteredError(f"picture: was refused ({reason}).")
