"""The small JSON files beside a model's weights: hashes, the state of a run, its way to sample."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.errors import MdmError
from mdm_apple.sampling.settings import read_sampling
from mdm_apple.storage.atomic_folder import finish_save, verify_files
from mdm_apple.storage.model_folder import load_training_meta

FILES = ("hashes.json", "training.json", "sampling.json")


def read(folder: Path, data: bytes) -> None:
    """Raises a refusal if none of them can be read."""
    for name in FILES:
        (folder / name).write_bytes(data)
    (folder / ".commit").mkdir()
    (folder / ".commit" / "hashes.json").write_bytes(data)
    refusals: list[MdmError] = []
    for read_one in (
        lambda: load_training_meta(folder),
        lambda: read_sampling(folder, None),
        lambda: verify_files(folder),
        lambda: finish_save(folder),
    ):
        try:
            read_one()
        except MdmError as error:
            refusals.append(error)
    if len(refusals) == 4:
        raise refusals[0]
