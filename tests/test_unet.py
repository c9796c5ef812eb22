"""What a network computes, stated as facts that no fixture of the original holds."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
from backends import Backend, predict
from small import (
    TEXT_DIM,
    around,
    noisy_images,
    normal,
    plain,
    random_state,
    random_text,
    video,
)

from mdm_apple.config.network import UNetConfig
from mdm_apple.config.shapes import state_shapes

TIMES = np.array([3, 500, 999])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], np.float32)
NESTS = {
    "plain": plain(),
    "projected": plain(text_proj_dim=32, num_text_head_layers=1),
    "unmasked": plain(masked_cross_attention=False),
    "nested": around(plain(), num_attention_layers=(0, 1)),
    "three": around(around(plain(), normalize_input=True)),
    "video": video(plain(), num_attention_layers=(0, 1, 0), temporal_positional_encoding=True),
    "two_videos": video(video(plain())),
    "resampled_video": around(video(plain()), temporal=True, temporal_spatial_resampling=True),
}


def inputs(config: UNetConfig, rows: int = 3) -> list[np.ndarray]:
    return noisy_images(config, rows, side=8)


def run(
    backend: Backend,
    config: UNetConfig,
    x_t: list[np.ndarray],
    text: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    times: np.ndarray = TIMES,
    micros: dict[str, np.ndarray] | None = None,
    state: dict[str, np.ndarray] | None = None,
) -> list[np.ndarray]:
    net = backend.network(config, random_state(config) if state is None else state)
    images = [backend.image(x) for x in x_t]
    out = predict(backend, net, images, times, text, mask, micros or {})
    return [backend.numpy(level) for level in out]


def assert_close(got: list[np.ndarray], wanted: list[np.ndarray], atol: float = 1e-4) -> None:
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def differ(one: list[np.ndarray], other: list[np.ndarray], level: int = 0) -> bool:
    return float(np.abs(one[level] - other[level]).max()) > 1e-2


@pytest.mark.parametrize("config", NESTS.values(), ids=list(NESTS))
def test_rows_of_a_batch_do_not_touch_each_other(backend: Backend, config: UNetConfig) -> None:
    """Each frame of each sample attends to the text of its own sample, too."""
    x_t, text = inputs(config), random_text(3)
    together = run(backend, config, x_t, text, MASK)
    assert [x.shape for x in together] == [x.shape for x in x_t]
    for i in range(3):
        rows = slice(i, i + 1)
        alone = run(backend, config, [x[rows] for x in x_t], text[rows], MASK[rows], TIMES[rows])
        assert_close([x[rows] for x in together], alone)


@pytest.mark.parametrize("config", NESTS.values(), ids=list(NESTS))
def test_text_reaches_every_level(backend: Backend, config: UNetConfig) -> None:
    x_t, text = inputs(config), random_text(3)
    one = run(backend, config, x_t, text, MASK)
    other = run(backend, config, x_t, random_text(3, seed=9), MASK)
    assert all(differ(one, other, level) for level in range(len(x_t)))


@pytest.mark.parametrize("config", NESTS.values(), ids=list(NESTS))
def test_without_a_mask_every_token_counts(backend: Backend, config: UNetConfig) -> None:
    x_t, text = inputs(config), random_text(3)
    unmasked = run(backend, config, x_t, text)
    assert_close(unmasked, run(backend, config, x_t, text, np.ones_like(MASK)))
    assert differ(unmasked, run(backend, config, x_t, text, MASK))


@pytest.mark.parametrize("name", ["plain", "projected", "nested", "three", "video"])
def test_padding_changes_nothing_where_masks_are_obeyed(backend: Backend, name: str) -> None:
    config, text = NESTS[name], random_text(3)
    other = np.where(MASK[:, :, None] == 1, text, 7.0).astype(np.float32)
    x_t = inputs(config)
    one = run(backend, config, x_t, text, MASK)
    assert_close(one, run(backend, config, x_t, other, MASK))


@pytest.mark.parametrize("name", ["plain", "projected", "nested", "three"])
def test_a_fully_masked_prompt_adds_nothing(backend: Backend, name: str) -> None:
    """Finite, and equal to a network without cross-attention values and pooled text."""
    config = NESTS[name]
    state = random_state(config)
    mute = dict(state)
    for key, value in state.items():
        if key.endswith(("kv_cond.weight", "kv_cond.bias", "cond_emb.weight")):
            mute[key] = np.zeros_like(value)
    x_t, text, nothing = inputs(config), random_text(3), np.zeros_like(MASK)
    masked = run(backend, config, x_t, text, nothing, state=state)
    assert all(np.isfinite(level).all() for level in masked)
    assert_close(masked, run(backend, config, x_t, text, MASK, state=mute))
    assert differ(masked, run(backend, config, x_t, text, MASK, state=state))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_nest_without_text_works(backend: Backend, levels: int) -> None:
    config = plain(text_dim=None)
    for _ in range(levels - 1):
        config = around(config, num_attention_layers=(0, 1))
    x_t = inputs(config)
    out = run(backend, config, x_t)
    assert [x.shape for x in out] == [x.shape for x in x_t]
    assert all(np.isfinite(level).all() for level in out)
    assert not any("cond" in key and "layers" not in key for key in state_shapes(config))


# --- rows, sides, normalisation ---------------------------------------------------------------


def test_rows_missing_above_run_as_if_there_were_no_level_above(backend: Backend) -> None:
    """A mixed batch: one row of three at the top, two in the middle."""
    config = NESTS["three"]
    state = random_state(config)
    middle = config.inner
    assert middle is not None
    assert middle.inner is not None
    x_t, text = inputs(config), random_text(3)
    mixed = [x[:rows] for x, rows in zip(x_t, (1, 2, 3), strict=True)]
    out = run(backend, config, mixed, text, MASK, state=state)
    assert [len(level) for level in out] == [1, 2, 3]

    def alone(inside: UNetConfig, depth: int, row: int) -> list[np.ndarray]:
        prefix, rows = "inner_unet." * depth, slice(row, row + 1)
        weights = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        images = [x[rows] for x in x_t[depth:]]
        return run(
            backend, inside, images, text[rows], MASK[rows], TIMES[rows], state=dict(weights)
        )

    assert_close([level[:1] for level in out], alone(config, 0, 0))
    assert_close([level[1:2] for level in out[1:]], alone(middle, 1, 1))
    assert_close([out[2][2:3]], alone(middle.inner, 2, 2))


def test_normalised_input_ignores_the_contrast_of_its_image_alone(backend: Backend) -> None:
    inner = plain()
    x_t, text = inputs(around(inner)), random_text(3)
    louder = [4 * x_t[0], x_t[1]]
    normalised = around(inner, normalize_input=True)
    assert_close(
        run(backend, normalised, x_t, text), run(backend, normalised, louder, text), atol=1e-4
    )
    assert differ(run(backend, around(inner), x_t, text), run(backend, around(inner), louder, text))
    louder_inside = [x_t[0], 4 * x_t[1]]
    assert differ(
        run(backend, normalised, x_t, text), run(backend, normalised, louder_inside, text), level=1
    )


def test_normalised_input_divides_by_the_unbiased_deviation(backend: Backend) -> None:
    config = around(plain(), normalize_input=True)
    x_t, text = inputs(config), random_text(3)
    deviation = x_t[0].reshape(3, -1).std(axis=1, ddof=1)[:, None, None, None]
    by_hand = [x_t[0] / deviation, x_t[1]]
    plain_input = dataclasses.replace(config, normalize_input=False)
    assert_close(
        run(backend, config, x_t, text), run(backend, plain_input, by_hand, text), atol=2e-5
    )


def test_normalised_video_is_measured_frame_by_frame(backend: Backend) -> None:
    config = video(plain(), normalize_input=True)
    x_t, text = inputs(config), random_text(3)
    louder = x_t[0].copy()
    louder[:, :, :8, 8:] *= 4  # the second of the four frames
    one, other = run(backend, config, x_t, text), run(backend, config, [louder, x_t[1]], text)
    assert_close(one, other)
    assert differ(
        run(backend, video(plain()), x_t, text),
        run(backend, video(plain()), [louder, x_t[1]], text),
    )


def test_frames_meet_only_in_temporal_layers_and_in_the_level_inside(backend: Backend) -> None:
    frames = video(plain())
    config = around(frames, temporal=True, temporal_spatial_resampling=True)
    state = random_state(config)
    state["out_adapter.weight"] = np.zeros_like(state["out_adapter.weight"])
    x_t, text = inputs(config), random_text(3)

    def reached(
        inside: UNetConfig, state: dict[str, np.ndarray], images: list[np.ndarray]
    ) -> list[bool]:
        """Which of the four frames answer when the second one changes."""
        half = images[0].shape[-1] // 2
        changed = images[0].copy()
        changed[:, :, :half, half:] += 1
        one = run(backend, inside, images, text, state=state)[0]
        other = run(backend, inside, [changed, *images[1:]], text, state=state)[0]
        difference = np.abs(one - other).reshape(3, 3, 2, half, 2, half).max(axis=(0, 1, 3, 5))
        return (difference > 1e-3).reshape(-1).tolist()

    assert reached(config, state, x_t) == [False, True, False, False]
    assert reached(frames, random_state(frames), x_t[1:]) == [True, True, True, True]


def test_a_level_of_time_over_a_nest_of_pictures_sees_whole_frames(backend: Backend) -> None:
    """Four frames, though the sides of the nest would allow sixteen of half their side."""
    config = video(around(plain()), num_temporal_attention_layers=(0, 0, 0))
    assert (config.scales, config.frame_grid) == ((4, 2, 1), 2)
    x_t, text = inputs(config), random_text(3)
    side = x_t[0].shape[-1] // 2  # of a frame
    changed = x_t[0].copy()
    changed[:, :, :side, side + side // 4] += 1  # in the left half of the second frame

    def difference(over_time: float) -> np.ndarray:
        state = random_state(config)
        state["out_adapter.weight"] = np.zeros_like(state["out_adapter.weight"])
        for name in [name for name, value in state.items() if value.ndim == 3]:
            state[name] = state[name] * np.float32(over_time)
        one = run(backend, config, x_t, text, state=state)[0]
        other = run(backend, config, [changed, *x_t[1:]], text, state=state)[0]
        return np.abs(one - other).max(axis=(0, 1))

    alone, together = difference(0), difference(1)
    assert alone[:side, side + side // 2 :].max() > 1e-4
    assert max(alone[side:].max(), alone[:side, :side].max()) < 1e-6
    assert together[side:].max() > 1e-4


def test_adapters_of_single_frames_do_not_see_their_neighbours(backend: Backend) -> None:
    """The published ones do: a 3x3 convolution on the canvas crosses the borders."""
    base = {"temporal": True, "temporal_spatial_resampling": True}
    x_t, text = inputs(around(video(plain()), **base)), random_text(3)
    changed = [x_t[0].copy(), *x_t[1:]]
    side = x_t[0].shape[-1] // 2  # of a frame
    changed[0][:, :, :side, side:] += 1  # the second frame

    def first_frame_answers(per_frame: bool) -> bool:
        config = around(video(plain()), **base, adapters_per_frame=per_frame)
        state = random_state(config)
        for name in state:  # the level inside hands on nothing but its features from above
            if name.startswith("inner_unet.out_adapter"):
                state[name] = np.zeros_like(state[name])
            if name.startswith("inner_unet.") and state[name].ndim == 3:
                state[name] = np.zeros_like(state[name])
            if name.startswith("inner_unet.") and ".t_attn." in name:
                state[name] = np.zeros_like(state[name])
        one = run(backend, config, x_t, text, state=state)[0]
        other = run(backend, config, changed, text, state=state)[0]
        return bool(np.abs(one - other)[:, :, :side, :side].max() > 1e-5)

    assert first_frame_answers(False)
    assert not first_frame_answers(True)


def test_temporal_attention_follows_attention_on_a_level_that_has_both(backend: Backend) -> None:
    """Either kind matters, and neither replaces the other."""
    both = video(plain(), num_attention_layers=(0, 1, 0))
    state = random_state(both)
    x_t, text = inputs(both), random_text(3)
    full = run(backend, both, x_t, text, state=state)
    for branch in (".attn.0.proj_out.", ".attn.0.up_conv.", ".t_attn.0.up_conv."):
        muted = {
            k: np.zeros_like(v) if k.startswith("down_blocks.1") and branch in k else v
            for k, v in state.items()
        }
        touched = any(not np.array_equal(muted[k], state[k]) for k in state)
        assert touched == (branch != ".attn.0.up_conv.")
        assert differ(full, run(backend, both, x_t, text, state=muted)) == touched


# --- conditions -------------------------------------------------------------------------------


def test_scale_is_capped_at_its_default_and_other_conditions_are_not(backend: Backend) -> None:
    config = plain(micro_conditions={"scale": 8.0, "watermark": 0.0})
    x_t, text = inputs(config), random_text(3)

    def at(**micros: float) -> list[np.ndarray]:
        values = {k: np.full(3, v, np.float32) for k, v in micros.items()}
        return run(backend, config, x_t, text, micros=values)

    default = at()
    assert_close(default, at(scale=8.0, watermark=0.0), atol=0)
    assert_close(default, at(scale=64.0), atol=0)
    assert differ(default, at(scale=4.0))
    assert differ(default, at(watermark=1.0))


def test_what_a_prompt_contributes_is_computed_once_for_all_timesteps(backend: Backend) -> None:
    """Conditioning and embeddings that were made before give the forward pass bit for bit."""
    for config in NESTS.values():
        net = backend.network(config, random_state(config))
        images = [backend.image(x) for x in inputs(config)]
        text, mask = backend.array(random_text(3)), backend.array(MASK)
        conditioning = net.condition(text, mask)
        for time in (0, 999):
            times = backend.array(np.full(3, time))
            prepared = net.denoise(images, net.embed(times), conditioning)
            direct = net(images, times, text, mask)
            for a, b in zip(prepared, direct, strict=True):
                np.testing.assert_array_equal(backend.numpy(a), backend.numpy(b))


def test_times_are_told_apart_to_the_last(backend: Backend) -> None:
    config = plain(text_dim=None)
    x_t = inputs(config, rows=1)
    one = run(backend, config, x_t, times=np.array([998]))
    other = run(backend, config, x_t, times=np.array([999]))
    assert np.abs(one[0] - other[0]).max() > 1e-4


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: [x[0]], "expected 2 levels, got 1"),
        (lambda x: [*x, x[1]], "expected 2 levels, got 3"),
        (lambda x: [x[0], x[1][:2]], "batches may only grow"),
        (lambda x: [x[0][:2], x[1][:2]], "the last must equal"),
        (lambda x: [x[0][:, :, :14, :14], x[1]], "multiple of 4, got 14"),
        (
            lambda x: [x[0], x[1][:, :, :4, :4]],
            r"x_t: expected \(3, 8, 8\) at level 1, got \(3, 4, 4\)",
        ),
        (lambda x: [x[0][:, :, :8], x[1]], r"x_t: expected \(3, 16, 16\) at level 0"),
        (lambda x: [x[0][:, :2], x[1]], r"x_t: expected \(3, 16, 16\) at level 0"),
    ],
)
def test_images_that_do_not_fit_are_refused(backend: Backend, change: Any, message: str) -> None:
    config = around(plain())
    with pytest.raises(ValueError, match=message):
        run(backend, config, change(inputs(config)), random_text(3))


@pytest.mark.parametrize(
    ("text", "mask", "message"),
    [
        (None, None, rf"text_features: expected \(B, L, {TEXT_DIM}\), got None"),
        (normal(0, 3, 5, 8), None, r"got \(3, 5, 8\)"),
        (normal(0, 3, TEXT_DIM), None, "text_features"),
        (random_text(3), np.ones((3, 4), np.float32), "text_mask.*Pad or truncate"),
        (random_text(2), None, "text_features: expected 3 rows to match times, got 2"),
    ],
)
def test_text_that_does_not_fit_is_refused(
    backend: Backend, text: np.ndarray | None, mask: np.ndarray | None, message: str
) -> None:
    for config in (plain(), around(plain())):
        with pytest.raises(ValueError, match=message):
            run(backend, config, inputs(config), text, mask)


def test_a_configuration_survives_building_networks_from_it(backend: Backend) -> None:
    config = around(plain(text_proj_dim=32))
    before = copy.deepcopy(config)
    shapes = [
        {k: v.shape for k, v in backend.initial_state(config, seed).items()} for seed in (0, 1)
    ]
    assert config == before
    assert shapes[0] == shapes[1] == state_shapes(config)


# --- a network that was just built ------------------------------------------------------------

ZERO_AT_FIRST = (
    ".conv2.",  # of a ResNet
    ".proj_out.",
    ".ffn.3.",
    ".main.3.",  # of an MLP
    ".scale.1.",  # of a micro-condition
    "conv_out.",
    "in_adapter.",
    "out_adapter.",
    "temb_target_layer2.",
    "temb_guidance_layer2.",
)


@pytest.mark.parametrize("name", ["projected", "nested", "video"])
def test_residual_branches_outputs_and_adapters_start_at_zero_and_nothing_else(
    backend: Backend, name: str
) -> None:
    state = backend.initial_state(NESTS[name], seed=0)
    zero = {key for key, value in state.items() if not value.any()}
    norm_biases = {
        key
        for key, value in state.items()
        if key.endswith(".bias") and value.ndim == 1 and is_norm(key, state)
    }
    named = {key for key in state if any(part in f".{key}" for part in ZERO_AT_FIRST)}
    assert zero == named | norm_biases


def is_norm(key: str, state: dict[str, np.ndarray]) -> bool:
    return state[key.removesuffix("bias") + "weight"].ndim == 1


def test_a_new_level_leaves_the_predictions_inside_unchanged(backend: Backend) -> None:
    inner = plain()
    trained, config = random_state(inner), around(inner)
    state = backend.initial_state(config, seed=0)
    state |= {f"inner_unet.{key}": value for key, value in trained.items()}
    x_t, text = inputs(config), random_text(3)
    nested = run(backend, config, x_t, text, MASK, state=state)
    alone = run(backend, inner, x_t[1:], text, MASK, state=trained)
    np.testing.assert_array_equal(nested[1], alone[0])
    assert not nested[0].any()
