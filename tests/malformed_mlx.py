"""Malformed things and wrong flags for the commands that run in MLX.

What spoils a folder is the same for both backends, so those cases are taken over with the other
backend and must end in the same sentence.
"""

from __future__ import annotations

from malformed import Case, Command, Room
from malformed_folders import (
    DISK,
    FEATURES,
    MODELS,
    RUNS,
    Change,
    drop,
    edit,
    like,
    not_a_number,
    recipe_case,
    sample,
    trained,
    weights,
)

from mdm_apple.storage.model_folder import load_weights
from mdm_apple.storage.tensorfile import write_tensors

MLX = ("--backend", "mlx")


def in_mlx(case: Case) -> Case:
    def build(room: Room) -> Command:
        return (*case.build(room), *MLX)

    return Case(f"mlx {case.name}", case.says, build, case.file_bytes)


def runs_in_mlx(case: Case) -> bool:
    """Not where click refuses the call, nor the commands that have no backend."""
    others = ("import", "convert", "palettize")
    return case.code == 1 and not any(word in case.name for word in others)


SHARED = [in_mlx(c) for c in (*MODELS, *RUNS, *FEATURES, *DISK) if runs_in_mlx(c)]


def limit(name: str, says: str, *more: str, code: int = 1) -> Case:
    return Case(
        f"mlx {name}", says, lambda room: sample(room, room.good.model, *MLX, *more), code=code
    )


def torch_has_no(name: str, *option: str) -> Case:
    return Case(
        f"{name} in torch",
        "works with the backend mlx only, not torch",
        lambda room: sample(room, room.good.model, "--backend", "torch", *option),
    )


def imported(room: Room, *missing: str) -> Command:
    """A fine-tune of a folder that lacks parts of the encoder, as `mdm import` leaves it."""
    folder = room.copy(room.good.model)
    for name in missing:
        drop(name)(folder)
    return trained(room, "--init", folder, *MLX)


def broken_encoder(room: Room) -> Command:
    folder = room.copy(room.good.model)
    tensors = load_weights(folder, "text_encoder")
    not_a_number({"conv_in.bias": next(iter(tensors.values())).reshape(-1)})
    write_tensors(folder / "text_encoder.safetensors", tensors)
    return sample(room, folder, *MLX)


def fine_tune(name: str, says: str, change: Change) -> Case:
    def build(room: Room) -> Command:
        folder = room.copy(room.good.model)
        change(folder)
        return trained(room, "--init", folder, *MLX)

    return Case(f"mlx fine-tune {name}", says, build)


def uneven(room: Room) -> Command:
    return trained(room, "--init", room.good.model, "--batch-size", "3", "--accumulate", "4", *MLX)


OWN = [
    limit("limit of nothing", "is not an amount of memory", "--memory-limit", "0", code=2),
    limit("negative limit", "is not an amount of memory", "--memory-limit", "-1", code=2),
    limit("limit that is no number", "is not an amount of memory", "--memory-limit", "nan", code=2),
    limit("endless limit", "is not an amount of memory", "--memory-limit", "inf", code=2),
    limit("five bits", "is not one of", "--quantize", "5", code=2),
    limit("unknown number type", "is not one of", "--precision", "fp8", code=2),
    limit("unknown side", "this model has sides 8, 4, got 12", "--stop-at", "12"),
    limit("steps that are not there", "steps: expected 1 to 1000", "--steps", "5000"),
    Case("mlx bundle", "is a bundle", lambda room: sample(room, room.good.bundle, *MLX)),
    torch_has_no("quantize", "--quantize", "8"),
    torch_has_no("low memory", "--low-memory"),
    torch_has_no("memory limit", "--memory-limit", "1"),
    recipe_case("of three bits", "quantize: expected one of 8, 4, got 3", lambda r: r.update(quantize=3)),
    Case("recipe of eight bits in torch", "works with the backend mlx only", lambda room: (*recipe_case("", "", lambda r: r.update(quantize=8)).build(room), "--backend", "torch")),
    Case("mlx like a foreign picture", "carries no recipe", lambda room: (*like(room, room.good.pictures / "00.png"), *MLX)),
    Case("mlx NaN encoder", "NaN or infinite", broken_encoder),
    Case("mlx fine-tune without tokenizer", "copy tokenizer.model and text_encoder.safetensors there", lambda room: imported(room, "tokenizer.model")),
    Case("mlx fine-tune without encoder", "holds no text_encoder.safetensors", lambda room: imported(room, "text_encoder.safetensors")),
    Case("mlx fine-tune of an import", "or start anew with --preset", lambda room: imported(room, "tokenizer.model", "text_encoder.safetensors")),
    fine_tune("of NaN weights", "NaN or infinite", weights(not_a_number)),
    fine_tune("of another configuration", "should be", edit("config.json", model__channels=[64, 64])),
    fine_tune("of another encoder", "text_encoder.safetensors", edit("config.json", text__encoder__num_layers=2)),
    Case("mlx more parts than rows", "accumulate: expected at most", uneven),
    Case("mlx dry run of no memory", "is not an amount of memory", lambda room: trained(room, "--init", room.good.model, "--dry-run", "--memory", "0"), code=2),
    Case("mlx dry run of endless memory", "is not an amount of memory", lambda room: trained(room, "--init", room.good.model, "--dry-run", "--memory", "inf"), code=2),
    Case("mlx dry run of nan memory", "is not an amount of memory", lambda room: trained(room, "--init", room.good.model, "--dry-run", "--memory", "nan"), code=2),
]  # fmt: skip

CASES = [*SHARED, *OWN]
