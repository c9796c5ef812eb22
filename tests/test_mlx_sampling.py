"""Sampling in MLX: the pictures of torch, fewer bits, less memory, any thread."""

from __future__ import annotations

import gc
import json
import math
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import MlxBackend, TorchBackend
from click.testing import CliRunner, Result
from malformed import frozen_model
from PIL import Image
from small import CAPTIONS, plain, random_state, random_weights, save_random_model
from tolerances import FORWARD, MLX_PICTURE, REDUCED_PICTURE

from mdm_apple.cli import group
from mdm_apple.config.network import T5Config
from mdm_apple.config.presets import preset
from mdm_apple.config.shapes import encoder_shapes
from mdm_apple.errors import MdmError
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.pictures import read_recipe
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.model_folder import (
    load_model_config,
    load_tokenizer,
    load_weights,
    save_model,
)
from mdm_apple.text.feature_cache import FeatureCache, FeatureKey
from mdm_apple.training.boot import BootConfig, student_config

mx = pytest.importorskip("mlx.core")

from mdm_apple.mlx import load as mlx_open  # noqa: E402
from mdm_apple.mlx.quantize import quantize, quantize_runtime, weight_bytes  # noqa: E402
from mdm_apple.mlx.runtime import MlxRuntime  # noqa: E402
from mdm_apple.mlx.t5 import encoder_from_state  # noqa: E402
from mdm_apple.mlx.weights import flat  # noqa: E402

EIGHT = [Prompt(caption, seed) for seed, caption in enumerate(CAPTIONS[:8])]
SAMPLERS = [
    SamplerConfig("ddim", 25, guidance_scale=3.0),
    SamplerConfig("ddpm", 25),
    SamplerConfig("dpmpp", 25, spacing="log_snr", guidance_scale=2.0),
]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In dB, of pictures in [-1, 1]: peak 2."""
    error = math.sqrt(float(np.mean((one.astype(np.float64) - other) ** 2)))
    return 20 * math.log10(2 / error) if error else math.inf


def worst_psnr(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Over pictures and levels."""
    return min(
        psnr(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


# --- the same picture -------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=[s.kind for s in SAMPLERS])
def test_the_same_seed_and_folder_give_the_picture_of_torch(
    model_folder: Path, sampler: SamplerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    by_torch, by_mlx = (
        finish(generate(backend.runtime(model_folder), EIGHT, sampler))
        for backend in (TorchBackend(), MlxBackend())
    )
    worst = worst_psnr(by_torch, by_mlx)
    with capsys.disabled():
        print(f"\n{sampler.kind}, 25 steps, 8 prompts: worst PSNR {worst:.1f} dB", end="")
    assert worst >= MLX_PICTURE
    assert psnr(by_mlx[0][0], by_mlx[0][1]) < 40  # and not one picture for all


def test_a_folder_with_one_perturbed_weight_gives_another_picture(
    model_folder: Path, tmp_path: Path
) -> None:
    weights = load_weights(model_folder)
    weights["inner_unet.down_blocks.1.resnets.0.conv1.weight"][0, 0, 1, 1] += 0.05
    other = save_random_model(tmp_path / "other", preset("tiny"), weights)
    by_torch = finish(generate(TorchBackend().runtime(model_folder), EIGHT, SAMPLERS[0]))
    by_mlx = finish(generate(MlxBackend().runtime(other), EIGHT, SAMPLERS[0]))
    assert worst_psnr(by_torch, by_mlx) < MLX_PICTURE


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_text_features_equal_those_of_torch_and_any_weight_shows(kind: Any) -> None:
    import torch

    from mdm_apple.torch.t5 import encoder_from_state as torch_encoder

    config = T5Config(50, 24, 5, 36, 3, 4, feed_forward=kind)
    state = random_weights(encoder_shapes(config), 3)
    random = np.random.RandomState(0)
    ids, mask = random.randint(0, 50, (3, 19)).astype(np.int32), np.ones((3, 19), np.float32)
    mask[1, 9:], mask[2, :] = 0, 0
    theirs = torch_encoder(config, {k: torch.from_numpy(v) for k, v in state.items()})
    wanted = theirs(torch.from_numpy(ids).long(), torch.from_numpy(mask)).numpy()

    def error(state: dict[str, np.ndarray]) -> float:
        ours = encoder_from_state(config, {k: mx.array(v) for k, v in state.items()})
        got = np.array(ours(mx.array(ids), mx.array(mask)))
        return float(np.abs(got - wanted).max() / np.abs(wanted).max())

    assert not wanted[2].any()
    assert error(state) < FORWARD
    for name, value in state.items():
        moved = value + 1e-2 * random.standard_normal(value.shape).astype(np.float32)
        assert error(state | {name: moved}) > 2 * FORWARD, name


def test_a_fresh_encoder_has_the_spread_of_the_torch_one() -> None:
    import torch

    from mdm_apple.mlx.t5 import T5Encoder
    from mdm_apple.torch.t5 import T5Encoder as TorchEncoder

    config = T5Config(400, 96, 16, 160, 2, 6)
    mx.random.seed(0)
    torch.manual_seed(0)
    ours = {k: np.array(v) for k, v in flat(T5Encoder(config).parameters()).items()}
    theirs = {k: v.numpy() for k, v in TorchEncoder(config).state_dict().items()}
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    for name, value in theirs.items():
        assert float(ours[name].std()) == pytest.approx(float(value.std()), rel=0.2), name


# --- fewer bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_close_and_keeps_embeddings_exact(
    model_folder: Path, precision: Any
) -> None:
    exact = MlxBackend().runtime(model_folder)
    reduced = mlx_open.open_runtime(model_folder, precision=precision)
    types = {k: v.dtype for k, v in flat(reduced.net.parameters()).items()}
    for name, dtype in types.items():
        keeps = any(part in name for part in ("temb_", "cond_layers", "cond_emb", "norm", "ffn.0"))
        assert (dtype == mx.float32) == keeps, name
    sampler = SamplerConfig("ddim", 10)
    one, other = (finish(generate(r, EIGHT[:2], sampler)) for r in (exact, reduced))
    assert all(np.isfinite(level).all() for level in other)
    assert REDUCED_PICTURE[precision] <= worst_psnr(one, other) < 100


def test_fewer_bits_make_linear_layers_smaller_and_predictions_coarser(model_folder: Path) -> None:
    found = {}
    for bits in (8, 4):
        runtime = MlxBackend().runtime(model_folder)
        done, worst = quantize_runtime(runtime, bits, EIGHT[0])
        assert done.before == 4 * sum(v.size for v in load_weights(model_folder).values())
        assert done.after == weight_bytes(runtime.net) < done.before
        names = {k.rpartition(".")[0] for k in flat(runtime.net.parameters()) if "scales" in k}
        assert len(names) == done.layers
        assert any(name.endswith("kv_cond") for name in names)
        assert any(name.endswith("ffn.1") for name in names)
        assert not any(part in name for name in names for part in ("temb_", "cond_", "conv1"))
        found[bits] = done.after, worst
    assert found[4][0] < found[8][0]
    assert 15 < found[4][1] < found[8][1] - 10
    assert found[8][1] > 35


def test_rows_that_do_not_divide_into_groups_stay_as_they_are() -> None:
    config = plain(text_dim=16)
    net = MlxBackend().network(config, random_state(config))
    quantize(net, 8)
    assert "scales" in net.down_blocks[1].attn[0].qkv
    assert "scales" not in net.down_blocks[1].attn[0].kv_cond  # rows of 16


# --- memory and threads -----------------------------------------------------------------------


def test_low_memory_releases_the_encoder_before_the_network_is_loaded(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: list[Any] = []
    load_text, load_network = mlx_open.open_text, mlx_open.open_network

    def text(*arguments: Any, **options: Any) -> Any:
        encode = load_text(*arguments, **options)
        assert encode is not None
        encoders.append(weakref.ref(encode.encoder))
        return encode

    def network(folder: Path) -> Any:
        gc.collect()
        assert encoders[0]() is None
        return load_network(folder)

    monkeypatch.setattr(mlx_open, "open_text", text)
    monkeypatch.setattr(mlx_open, "open_network", network)
    captions = [prompt.text for prompt in EIGHT[:3]] + [""]
    lean = mlx_open.open_runtime(model_folder, remember=captions)
    monkeypatch.undo()
    sampler = SamplerConfig("ddim", 4, guidance_scale=2.0)
    one, other = (
        finish(generate(r, EIGHT[:3], sampler)) for r in (lean, MlxBackend().runtime(model_folder))
    )
    assert worst_psnr(one, other) > 100


def test_a_runtime_works_in_any_thread(model_folder: Path) -> None:
    runtime, sampler = MlxBackend().runtime(model_folder), SamplerConfig("ddpm", 3)
    made: dict[str, list[np.ndarray]] = {}

    def work(name: str) -> None:
        made[name] = finish(generate(runtime, EIGHT[:2], sampler))

    work("here")
    threads = [threading.Thread(target=work, args=(name,)) for name in ("there", "elsewhere")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(made) == {"here", "there", "elsewhere"}
    for name in ("there", "elsewhere"):
        for a, b in zip(made["here"], made[name], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_compiled_runtime_makes_the_same_pictures(model_folder: Path) -> None:
    """What a GPU does by default."""
    plain = MlxBackend().runtime(model_folder)
    sampler = SamplerConfig("dpmpp", 3, guidance_scale=3.0)
    wanted = finish(generate(plain, EIGHT[:2], sampler))
    net, text = mlx_open.open_network(model_folder), mlx_open.open_text(model_folder, plain.config)
    compiled = MlxRuntime(plain.config, net, text, compiled=True)
    mx.enable_compile()
    try:
        made = finish(generate(compiled, EIGHT[:2], sampler))
    finally:
        mx.disable_compile()
    assert worst_psnr(wanted, made) > MLX_PICTURE  # fused kernels round in another order


def test_a_students_layers_are_quantized_and_compared_on_its_own_jumps(
    model_folder: Path, tmp_path: Path
) -> None:
    teacher = load_model_config(model_folder)
    config = student_config(teacher, BootConfig(flow_map=2, guidance=(1.0, 4.0)))
    folder = tmp_path / "student"
    save_model(
        folder,
        config,
        random_state(config.model),
        text_encoder=load_weights(model_folder, "text_encoder"),
        tokenizer=load_tokenizer(model_folder),
    )
    done, worst = quantize_runtime(MlxBackend().runtime(folder), 8, EIGHT[0])
    assert done.layers > 0
    assert 15 < worst < 80


# --- commands ---------------------------------------------------------------------------------


def mdm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, [str(a) for a in arguments])


def test_the_command_makes_the_picture_of_torch_and_says_what_it_used(
    model_folder: Path, tmp_path: Path
) -> None:
    asked = ["sample", "--model", model_folder, "--prompt", "red heart", "--steps", "3", "--seed"]
    pictures = {}
    for backend, more in (("torch", []), ("mlx", []), ("mlx", ["--low-memory"])):
        out = tmp_path / f"{backend}{len(more)}.png"
        result = mdm(*asked, "7", "--backend", backend, *more, "--json", "--out", out)
        assert result.exit_code == 0, result.exception or result.output
        said = json.loads(result.stdout)
        assert (said.get("peak_memory_gb", 0) > 0) == (backend == "mlx")
        assert ("peak memory" in result.stderr) == (backend == "mlx")
        assert read_recipe(out).backend == backend
        pictures[out.name] = np.asarray(Image.open(out)).astype(int)
    for name in ("mlx0.png", "mlx1.png"):
        assert np.abs(pictures[name] - pictures["torch0.png"]).max() <= 1


def test_the_command_shows_sizes_and_psnr_of_fewer_bits_and_keeps_to_a_limit(
    model_folder: Path, tmp_path: Path
) -> None:
    limit = mx.set_memory_limit(10**10)
    asked = ["sample", "--model", model_folder, "--prompt", "cat", "--steps", "2", "--backend"]
    more = ["--quantize", "8", "--memory-limit", "3", "--precision", "bf16", "--previews"]
    result = mdm(*asked, "mlx", *more, "--out", tmp_path / "cat.png")
    assert mx.set_memory_limit(limit) == 3 * 10**9
    assert result.exit_code == 0, result.exception or result.output
    assert "8 bits: " in result.stderr
    assert "MB before" in result.stderr
    assert "PSNR of predictions at least" in result.stderr
    assert "limit 3.00 GB" in result.stderr
    assert (tmp_path / "cat_steps.png").is_file()
    assert read_recipe(tmp_path / "cat.png").quantize == 8
    again = ["sample", "--model", model_folder, "--like", tmp_path / "cat.png", "--backend", "mlx"]
    result = mdm(*again, "--out", tmp_path / "again.png")
    assert result.exit_code == 0, result.exception or result.output
    assert "8 bits: " in result.stderr
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "cat.png").read_bytes()


@pytest.mark.parametrize("option", [["--quantize", "8"], ["--low-memory"], ["--memory-limit", "1"]])
def test_options_of_mlx_are_refused_elsewhere(
    model_folder: Path, tmp_path: Path, option: list[str]
) -> None:
    asked = ["sample", "--model", model_folder, "--prompt", "cat", "--backend", "torch"]
    result = mdm(*asked, *option, "--out", tmp_path / "cat.png")
    assert isinstance(result.exception, MdmError)
    assert "works with the backend mlx only, not torch" in str(result.exception)


def test_features_of_a_frozen_encoder_are_those_of_torch(tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    model = frozen_model(tmp_path / "frozen", encoder)
    text = load_model_config(model).text
    assert text is not None
    asked = ["embed", "--model", model, "--text-encoder", encoder, "--prompt", "red heart"]
    values = []
    for backend in ("torch", "mlx"):
        out = tmp_path / backend
        result = mdm(*asked, "--backend", backend, "--quiet", "--out", out)
        assert result.exit_code == 0, result.exception or result.output
        values.append(FeatureCache(out, FeatureKey.of(text)).lookup(["red heart"]).values)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-2, atol=1e-4)  # stored as bf16
    assert values[0].any()
