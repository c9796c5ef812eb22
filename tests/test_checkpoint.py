"""Model folders: strict, hashed, and whole whatever moment a save is cut off at."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.shapes import encoder_shapes, state_shapes
from mdm_apple.config.strict_json import to_json
from mdm_apple.errors import ConfigError
from mdm_apple.storage import atomic_folder, model_folder
from mdm_apple.storage.atomic_folder import CheckpointError, finish_save, locate, verify_files
from mdm_apple.storage.model_folder import (
    Training,
    Weights,
    load_model_config,
    load_tokenizer,
    load_training,
    load_weights,
    save_config,
    save_model,
)
from mdm_apple.storage.tensorfile import TensorFileError, from_bfloat16, read_tensors, to_bfloat16

TINY = preset("tiny")
SMALL = ModelConfig(
    model=UNetConfig((8,), (1,), (0,), mid_blocks=False, temb_dim=8, num_groups=4), side=8
)


def weights(seed: int, config: ModelConfig = SMALL) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = state_shapes(config.model)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def encoder_weights(seed: int) -> Weights:
    assert TINY.text is not None
    assert TINY.text.encoder is not None
    rng = np.random.default_rng(seed)
    shapes = encoder_shapes(TINY.text.encoder)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def training(seed: int) -> Training:
    rng = np.random.default_rng(seed)
    moments = {"m.0": rng.standard_normal(5, np.float32), "v.0": rng.standard_normal(5)}
    state = {
        "rng": np.frombuffer(b"abc", np.uint8),
        "count": np.array(seed),
        "on": np.array([True]),
    }
    return Training({**state, **moments}, {"step": seed, "rng": {"state": 1 << 127}, "best": None})


def save(folder: Path, seed: int) -> None:
    """A whole generation, all of whose files say `seed`."""
    save_model(
        folder,
        dataclasses.replace(SMALL, side=8 * seed),
        weights(seed),
        ema=weights(seed + 1000),
        tokenizer=f"tokens {seed}".encode(),
        training=training(seed),
    )


def generation(folder: Path) -> int:
    """The seed that all files of the current save agree on; fails on a mixture."""
    seed = load_model_config(folder).side // 8
    assert same(load_weights(folder), weights(seed))
    assert same(load_weights(folder, "ema"), weights(seed + 1000))
    assert load_tokenizer(folder) == f"tokens {seed}".encode()
    state = load_training(folder)
    assert state.meta == training(seed).meta
    assert same(state.tensors, training(seed).tensors)
    verify_files(folder)
    return seed


def same(a: Weights, b: Weights) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes()
        for k in a
    )


# --- round trips --------------------------------------------------------------------------------


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path / "new" / "model", 3)
    assert generation(tmp_path / "new" / "model") == 3


def test_text_encoder_and_its_ema_come_back(tmp_path: Path) -> None:
    save_model(
        tmp_path,
        TINY,
        weights(0, TINY),
        text_encoder=encoder_weights(1),
        text_encoder_ema=encoder_weights(2),
    )
    assert same(load_weights(tmp_path, "text_encoder"), encoder_weights(1))
    assert same(load_weights(tmp_path, "text_encoder_ema"), encoder_weights(2))


def test_an_idle_folder_holds_the_named_files_only(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    save(tmp_path, 2)
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json",
        "ema.safetensors",
        "hashes.json",
        "metrics.jsonl",
        "model.safetensors",
        "tokenizer.model",
        "training.json",
        "training.safetensors",
    }


def test_a_save_without_ema_leaves_no_older_ema(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save_model(tmp_path, SMALL, weights(2))
    with pytest.raises(CheckpointError, match=r"holds no ema\.safetensors"):
        load_weights(tmp_path, "ema")
    with pytest.raises(CheckpointError, match=r"holds no training\.json"):
        load_training(tmp_path)


def test_a_configuration_can_be_replaced_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save_config(tmp_path, dataclasses.replace(load_model_config(tmp_path), side=16))
    assert load_model_config(tmp_path).side == 16
    save_config(tmp_path, dataclasses.replace(load_model_config(tmp_path), side=8))
    assert generation(tmp_path) == 1


def test_a_configuration_of_another_network_does_not_replace_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="belong to a different network"):
        save_config(tmp_path, TINY)
    assert generation(tmp_path) == 1


def test_weights_are_written_in_the_order_of_the_state_dict(tmp_path: Path) -> None:
    shuffled = list(weights(0).items())
    random.Random(0).shuffle(shuffled)
    save_model(tmp_path, SMALL, dict(shuffled))
    assert list(read_tensors(tmp_path / "model.safetensors")) == list(state_shapes(SMALL.model))


def test_the_safetensors_package_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    save(tmp_path, 1)
    package = load_file(tmp_path / "training.safetensors")
    assert same({k: package[k] for k in training(1).tensors}, training(1).tensors)
    mixed = {"b": np.arange(3, dtype=np.uint8), "a": np.arange(4.0), "e": np.zeros((0, 2), "f4")}
    save_file(mixed, tmp_path / "theirs.safetensors")
    theirs = read_tensors(tmp_path / "theirs.safetensors")
    assert same({k: theirs[k] for k in mixed}, mixed)


@pytest.mark.parametrize(("storage", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_storage_halves_the_file_and_loads_as_float32(
    storage: Any, error: float, tmp_path: Path
) -> None:
    save_model(tmp_path / "full", SMALL, weights(0))
    save_model(tmp_path / "half", SMALL, weights(0), storage=storage)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.8 * sizes[0]
    for name, value in load_weights(tmp_path / "half").items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, weights(0)[name], rtol=error, atol=1e-7)


def test_bfloat16_rounds_to_nearest_even_like_torch() -> None:
    import torch

    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint64).astype(np.uint32)
    edges = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0x80000000, 1], np.uint32)
    values = np.concatenate([bits, edges]).view(np.float32)
    values = values[~np.isnan(values)]
    ours = from_bfloat16(to_bfloat16(values))
    theirs = torch.from_numpy(values).bfloat16().float().numpy()
    assert ours.tobytes() == theirs.tobytes()
    assert np.isnan(from_bfloat16(to_bfloat16(np.array([np.nan, -np.nan], np.float32)))).all()


# --- refusals -----------------------------------------------------------------------------------


def changed(name: str, value: np.ndarray | None) -> Weights:
    result = weights(0)
    if value is None:
        del result[name]
    else:
        result[name] = value
    return result


WRONG: list[tuple[Weights, str]] = [
    (changed("conv_in.bias", None), r"1 missing \(first 'conv_in.bias'\) of"),
    (changed("extra", np.zeros(1, np.float32)), r"1 unexpected \(first 'extra'\) of"),
    (changed("conv_in.bias", np.zeros(9, np.float32)), r"conv_in.bias should be \(8,\), but is"),
    (changed("conv_in.bias", np.zeros(8, np.int32)), "should hold floating-point numbers"),
    (changed("conv_in.bias", np.full(8, np.nan, np.float32)), "holds NaN or infinite values"),
    (changed("conv_in.bias", np.full(8, -np.inf, np.float32)), "holds NaN or infinite values"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_weights_are_neither_saved_nor_loaded(
    wrong: Weights, message: str, tmp_path: Path
) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=message):
        save_model(tmp_path, SMALL, wrong)
    with pytest.raises(CheckpointError, match=message):
        save_model(tmp_path, SMALL, weights(0), ema=wrong)
    assert generation(tmp_path) == 1
    save_file(wrong, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path)


def test_values_beyond_float16_are_not_stored_as_float16(tmp_path: Path) -> None:
    large = changed("conv_in.bias", np.full(8, 7e4, np.float32))
    with pytest.raises(CheckpointError, match=r"conv_in\.bias exceeds float16"):
        save_model(tmp_path, SMALL, large, storage="float16")
    save_model(tmp_path, SMALL, large, storage="bfloat16")


def test_training_state_must_be_plain_json(tmp_path: Path) -> None:
    for meta in ({"loss": float("nan")}, {"path": Path("x")}):
        with pytest.raises(CheckpointError, match="training state cannot be stored"):
            save_model(tmp_path, SMALL, weights(0), training=Training({}, meta))
    assert not list(tmp_path.iterdir())


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no such model folder"):
        load_model_config(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_weights(tmp_path)


def test_weights_from_another_configuration_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "config.json").write_text(to_json(TINY))
    with pytest.raises(CheckpointError, match="weights do not belong to this configuration"):
        load_weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="key 'model' is missing"):
        load_weights(tmp_path)


def test_changed_files_are_found_by_their_hash(tmp_path: Path) -> None:
    save(tmp_path, 1)
    verify_files(tmp_path)
    path = tmp_path / "ema.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r": ema\.safetensors changed since the save"):
        verify_files(tmp_path)


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def entry(**fields: Any) -> bytes:
    full = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}
    return json.dumps({"w": full}).encode()


ENTRY = json.dumps({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}).encode()

HOSTILE: list[tuple[bytes, str]] = [
    (b"", "not a safetensors file"),
    (b"1234", "not a safetensors file"),
    (struct.pack("<Q", 1 << 62) + b"{}", "not a safetensors file, or cut off"),
    (struct.pack("<Q", 100) + b"{}", "not a safetensors file, or cut off"),
    (header(b"[1]"), "damaged .*invalid JSON"),
    (header(b"{"), "damaged .*invalid JSON"),
    (header(b"\xff\xff"), "damaged .*invalid UTF-8"),
    (header(b"[" * 200_000), "damaged .*invalid JSON"),
    (header(b'{"w": 1, "w": 2}'), "damaged .*invalid JSON"),
    (header(b'{"w": %s, "w": %s}' % (ENTRY, ENTRY), bytes(8)), "'w' appears twice"),
    (header(b'{"w": 1}'), "damaged .*invalid type"),
    (header(entry(dtype="F99"), bytes(8)), "damaged .*unknown variant `F99`"),
    (header(entry(dtype="F8_E4M3", shape=[8]), bytes(8)), "the unknown number type F8_E4M3"),
    (header(entry(shape=[3]), bytes(8)), "damaged .*invalid shape"),
    (header(entry(shape=[-2]), bytes(8)), "damaged .*invalid value"),
    (header(entry(shape=[True, 2]), bytes(8)), "damaged .*invalid type"),
    (header(entry(shape=[1] * 16 + [2]), bytes(8)), "shape that numpy cannot hold"),
    (header(entry(shape=[1 << 47, 1 << 47]), bytes(8)), "damaged .*overflow"),
    (header(entry(shape=[0, 1 << 47], data_offsets=[0, 0])), "shape that numpy cannot hold"),
    (header(entry(shape=[0] + [1 << 20] * 3, data_offsets=[0, 0])), "shape that numpy cannot hold"),
    (header(entry(data_offsets=[8, 0]), bytes(8)), "damaged .*invalid offset"),
    (header(entry(data_offsets=[0]), bytes(8)), "damaged .*invalid length"),
    (header(entry(data_offsets=[4, 12]), bytes(12)), "damaged .*invalid offset for tensor `w`"),
    (header(entry(), bytes(7)), "cut off .*not fully covered"),
    (header(entry(), bytes(9)), "damaged .*not fully covered"),
]


@pytest.mark.parametrize(("content", "message"), HOSTILE)
def test_hostile_tensor_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(TensorFileError, match=message):
        read_tensors(path)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    one = json.loads(entry())["w"]
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(json.dumps({"a": one, "b": one}).encode(), bytes(8)))
    with pytest.raises(TensorFileError, match="invalid offset for tensor"):
        read_tensors(path)


def test_a_hash_list_that_names_other_paths_moves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, 1)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    commit = folder / ".commit"
    commit.mkdir()
    (commit / "hashes.json").write_text('{"../victim": {"size": 1, "sha256": "0"}}')
    for action in (lambda: save(folder, 2), lambda: finish_save(folder)):
        with pytest.raises(CheckpointError, match="damaged"):
            action()
    assert victim.read_text() == "precious"


def test_a_commit_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "model", 1)
    save(tmp_path / "other", 2)
    (tmp_path / "model" / ".commit").symlink_to(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is a link"):
        save(tmp_path / "model", 3)
    assert generation(tmp_path / "other") == 2


def test_two_processes_cannot_save_at_once(tmp_path: Path) -> None:
    save(tmp_path, 1)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="another process is saving there"):
        save(tmp_path, 2)
    os.close(descriptor)
    save(tmp_path, 2)
    assert generation(tmp_path) == 2


# --- saves that are cut off -----------------------------------------------------------------------


def in_child(action: Callable[[], None]) -> int:
    """Run in a forked process; its exit status, 0 when the action ended well."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            action()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying_at(step: int) -> None:
    """From now on this process ends, as by kill -9, just before its step-th change on disk."""
    count = 0

    def guard(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return original(*args, **kwargs)

        setattr(module, name, counted)

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "open"):
        guard(os, name)
    guard(atomic_folder.shutil, "rmtree")
    guard(model_folder, "write_tensors")


def test_a_kill_before_any_change_on_disk_leaves_one_whole_save(tmp_path: Path) -> None:
    outcomes: list[int] = []
    for step in range(200):
        folder = tmp_path / str(step)
        save(folder, 1)

        def cut_off(folder: Path = folder, step: int = step) -> None:
            dying_at(step)
            save(folder, 2)

        status = in_child(cut_off)
        assert status in (0, -signal.SIGKILL)
        seen = generation(folder)  # as a reader finds it, before anything is tidied
        finish_save(folder)
        assert generation(folder) == seen
        assert not any(p.name.startswith(".") for p in folder.iterdir())
        save(folder, 3)
        assert generation(folder) == 3
        outcomes.append(seen)
        if status == 0:
            break
    assert status == 0
    assert outcomes == sorted(outcomes)
    assert outcomes.count(1) > 8
    assert outcomes.count(2) > 8


ENDLESS = """
import sys
from pathlib import Path
import test_checkpoint
for seed in range(2, 10_000):
    test_checkpoint.save(Path(sys.argv[1]), seed)
    print(seed, flush=True)
"""


def kill_at_random(rounds: int, folder: Path) -> None:
    rng = random.Random(0)
    for _ in range(rounds):
        save(folder, 1)
        paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(folder)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()  # the first save is through: from now on it saves all the time
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        printed = [2, *map(int, process.stdout.read().split())]
        process.wait()
        assert printed[-1] <= generation(folder) <= printed[-1] + 1


def test_kills_at_random_moments_leave_the_last_complete_save(tmp_path: Path) -> None:
    kill_at_random(5, tmp_path)


@pytest.mark.slow
def test_many_kills_at_random_moments_leave_the_last_complete_save(tmp_path: Path) -> None:
    kill_at_random(100, tmp_path)


def test_reading_goes_on_while_another_process_saves(tmp_path: Path) -> None:
    save(tmp_path, 1)
    child = os.fork()
    if child == 0:
        try:
            for seed in range(2, 60):
                save(tmp_path, seed)
        finally:
            os._exit(0)
    reads = 0
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        side = load_model_config(tmp_path).side
        values = load_weights(tmp_path)
        known = (weights(s) for s in range(side // 8, 60))
        assert any(same(values, other) for other in known), "weights of no save"
        reads += 1
    assert reads > 3
    assert generation(tmp_path) == 59


def test_a_full_disk_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def on_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(CheckpointError, match="the disk is full"):
            save(tmp_path, 2)

    assert in_child(on_full_disk) == 0
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be saved; "):
        save(tmp_path / "file" / "model", 1)


def test_an_interrupted_save_is_read_in_place_until_it_is_finished(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def cut_off() -> None:
        original = os.replace

        def replace(a: Any, b: Any) -> None:
            if Path(a).name == "ema.safetensors":
                os._exit(9)
            original(a, b)

        os.replace = replace
        save(tmp_path, 2)

    assert in_child(cut_off) == 9
    assert locate(tmp_path, "ema.safetensors").parent.name == ".commit"
    assert locate(tmp_path, "model.safetensors").parent == tmp_path
    assert generation(tmp_path) == 2


def test_a_git_lfs_pointer_in_place_of_weights_is_named(tmp_path: Path) -> None:
    pointer = tmp_path / "model.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13543394\n")
    with pytest.raises(
        TensorFileError, match="a Git LFS pointer, not the file itself; run git lfs"
    ):
        read_tensors(pointer)
