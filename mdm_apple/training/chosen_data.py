"""The options of a run besides its settings: which pictures it sees and where text comes from.

Each save notes them, so that a resumed run needs none of them again. Older runs noted none; they
take what is given, or the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args

from mdm_apple.config.types import Background
from mdm_apple.data.clips.open_clips import CLIPS_PER_FILE
from mdm_apple.data.shards.plans import Order
from mdm_apple.data.shards.shard_pictures import BadPictures
from mdm_apple.errors import ConfigError, MdmError

OPTIONS = "options"  # in training.json
MAX_CAPTIONS = 1 << 20  # characters; of longer lists a save notes only that there was one


@dataclass(frozen=True)
class ChosenData:
    """What a run was told; None: not given."""

    captions: tuple[str, ...] | None = None
    background: Background | None = None
    skin_tones: bool | None = None
    features: Path | None = None
    text_encoder: Path | None = None
    clips_per_file: int | None = None
    pictures: str | None = None
    order: Order | None = None
    bad_pictures: BadPictures | None = None

    def as_json(self) -> dict[str, object]:
        """Values for training.json; paths are absolute, as the next command may run elsewhere."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if sum(map(len, self.captions or ())) > MAX_CAPTIONS:
            values["captions"] = True
        return {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in values.items()
            if value is not None
        }

    def resumed(self, saved: Mapping[str, object], out: Path) -> ChosenData:
        """What a resumed run goes on with: `saved` where nothing is given.

        Files may have moved, so another path is taken. Raises ConfigError for other pictures, with
        the option that differs, and MdmError for damaged notes.
        """
        if OPTIONS not in saved:
            return self
        before, listed = _from_json(saved[OPTIONS], out)
        if not listed:
            before = replace(before, captions=self.captions)
        for name, default in (
            ("captions", None),
            ("background", "white"),
            ("skin_tones", False),
            ("clips_per_file", CLIPS_PER_FILE),
            ("pictures", None),
            ("order", "lanes"),
        ):
            had, now = getattr(before, name), getattr(self, name)
            if now is not None and now != (default if had is None else had):
                option = name.replace("_", "-")
                raise ConfigError(
                    f"{option}: the run in {out} was started with other pictures by this option; "
                    f"leave out --{option} to go on with the same ones."
                )
        return ChosenData(
            before.captions,
            before.background,
            before.skin_tones,
            self.features or before.features,
            self.text_encoder or before.text_encoder,
            before.clips_per_file,
            before.pictures,
            before.order,
            self.bad_pictures or before.bad_pictures,
        )


def _from_json(values: object, out: Path) -> tuple[ChosenData, bool]:
    """The options of a save, and whether it lists the captions, if there were any."""
    try:
        known = dict(cast("dict[str, Any]", values))
        captions = known.pop("captions", None)
        unlisted = captions is True
        captions = None if unlisted else captions
        paths = {name: known.pop(name, None) for name in ("features", "text_encoder")}
        background, skin_tones = known.pop("background", None), known.pop("skin_tones", None)
        clips_per_file = known.pop("clips_per_file", None)
        pictures = known.pop("pictures", None)
        order, bad_pictures = known.pop("order", None), known.pop("bad_pictures", None)
        listed = None if captions is None else tuple(captions)
        texts = [*(listed or ()), *filter(None, paths.values())]
        if (
            known
            or background not in (None, "white", "color")
            or skin_tones not in (None, True, False)
            or not isinstance(clips_per_file, (int, NoneType))
            or not isinstance(pictures, (str, NoneType))
            or order not in (None, *get_args(Order))
            or bad_pictures not in (None, *get_args(BadPictures))
            or not all(isinstance(text, str) for text in texts)
            or isinstance(captions, str)
        ):
            raise ValueError
    except (TypeError, ValueError):
        raise MdmError(f"{out}: training.json is damaged; start anew with --init.") from None
    features, encoder = (None if path is None else Path(path) for path in paths.values())
    chosen = ChosenData(
        listed,
        background,
        skin_tones,
        features,
        encoder,
        clips_per_file,
        pictures,
        order,
        bad_pictures,
    )
    return chosen, not unlisted
