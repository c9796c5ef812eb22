"""Configurations: strict JSON, and refusals that name the field."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import around, plain, video

from mdm_apple.clip_file.timing import check_fps
from mdm_apple.config.model import (
    LEAST_FPS,
    MOST_FPS,
    DiffusionConfig,
    ModelConfig,
    ScheduleConfig,
    TextConfig,
    VideoConfig,
)
from mdm_apple.config.network import Student, T5Config, UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.ranges import in_range
from mdm_apple.config.strict_json import ADDED_LATER, from_dict, from_json, read_config, to_json
from mdm_apple.errors import ConfigError
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.training.settings import TrainConfig


def test_json_states_every_field() -> None:
    written = json.loads(to_json(preset("mdm1024")))
    for cls, found, younger in (
        (ModelConfig, written, {"video", "white_headroom"}),
        (UNetConfig, written["model"]["inner"], {"adapters_per_frame"}),
    ):
        fields = dataclasses.fields(cls)
        assert {f.name for f in fields if f.metadata == ADDED_LATER} == younger
        assert set(found) == {f.name for f in fields} - younger


def changed(path: str, value: object) -> str:
    """JSON of the tiny preset with one value replaced or added."""
    data = json.loads(to_json(preset("tiny")))
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(data)


def removed(name: str) -> str:
    data = json.loads(to_json(preset("tiny")))
    del data[name]
    return json.dumps(data)


def refusal(kind: type[Any], text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_json(kind, text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def test_unknown_key_is_refused_with_the_nearest_name() -> None:
    message = refusal(ModelConfig, changed("model.atention_ffn", True))
    assert "config.model: unknown key 'atention_ffn'" in message
    assert "'attention_ffn'" in message


def test_unknown_key_far_from_all_is_refused_with_the_known_names() -> None:
    assert "Known: " in refusal(ScheduleConfig, '{"zzz": 1}')


def test_duplicate_key_is_refused() -> None:
    assert "'side' appears twice" in refusal(ModelConfig, '{"side": 8, "side": 16}')


@pytest.mark.parametrize("name", ["side", "model"])
def test_missing_key_is_refused(name: str) -> None:
    assert f"key '{name}' is missing" in refusal(ModelConfig, removed(name))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_outside_json_are_refused(constant: str) -> None:
    assert constant in refusal(DiffusionConfig, f'{{"output_scale": {constant}}}')


def test_a_number_too_large_for_a_float_is_refused() -> None:
    message = refusal(DiffusionConfig, '{"output_scale": 1e999}')
    assert "output_scale: expected a finite number" in message


def test_a_whole_number_too_large_for_a_float_is_refused() -> None:
    message = refusal(DiffusionConfig, f'{{"output_scale": 1{"0" * 400}}}')
    assert "output_scale: expected a finite number" in message


def test_a_number_of_too_many_digits_is_refused() -> None:
    assert "not valid JSON" in refusal(DiffusionConfig, f'{{"output_scale": 1{"0" * 5000}}}')


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("side", True, "side: expected a whole number"),
        ("side", 16.0, "side: expected a whole number"),
        ("side", "16", "side: expected a whole number"),
        ("model.dropout", False, "dropout: expected a number"),
        ("model.attention_ffn", 1, "attention_ffn: expected true or false"),
        ("model.channels", 32, "channels: expected a list"),
        ("model.channels", [32, "32"], "channels[1]: expected a whole number"),
        ("model.micro_conditions", ["scale"], "micro_conditions: expected an object"),
        ("model.micro_conditions", {"scale": "8"}, "micro_conditions.scale: expected a number"),
        ("diffusion.prediction", "x0", "prediction: expected one of eps, v"),
        ("diffusion.prediction", ["v"], "prediction: expected one of eps, v"),
        ("text.source", 3, "source: expected text"),
        ("model", None, "model: expected an object"),
        ("model.inner", [], "inner: expected an object"),
    ],
)
def test_wrong_type_is_refused_by_name(path: str, value: object, expected: str) -> None:
    assert expected in refusal(ModelConfig, changed(path, value))


@pytest.mark.parametrize("text", ["", "{", "[1, 2", '{"side": 8,}', "[" * 100_000])
def test_broken_or_bottomless_json_is_refused(text: str) -> None:
    assert "not valid JSON" in refusal(ModelConfig, text)


@pytest.mark.parametrize("text", ["3", "null", '"mdm64"', "[]"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    assert "expected an object" in refusal(ModelConfig, text)


def test_a_nest_too_deep_is_refused() -> None:
    data = json.loads(to_json(preset("tiny")))
    for _ in range(200):
        data["model"] = data["model"] | {"inner": data["model"]}
    assert "levels" in refusal(ModelConfig, json.dumps(data))


@settings(suppress_health_check=[HealthCheck.too_slow])  # slow only on a busy machine
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([f.name for f in dataclasses.fields(UNetConfig)]), inner, max_size=5
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_configuration_or_a_refusal(data: object) -> None:
    with contextlib.suppress(ConfigError):
        from_dict(UNetConfig, data)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_config(ModelConfig, tmp_path / "none.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_config(ModelConfig, binary)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="at most 1 MiB"):
        read_config(ModelConfig, path)


def model(**changes: Any) -> ModelConfig:
    return dataclasses.replace(preset("tiny"), **changes)


WIDE = {"channels": (8192, 8192), "num_resnets": (4, 4), "text_dim": 32}
IMPOSSIBLE: list[tuple[str, Callable[[], object]]] = [
    ("channels", lambda: plain(channels=(), num_resnets=(), num_attention_layers=())),
    ("channels", lambda: plain(channels=(0, 32))),
    ("channels", lambda: plain(channels=(48, 48), num_groups=16)),  # attention needs 32
    ("channels", lambda: plain(channels=(32, 1 << 20))),
    ("num_resnets", lambda: plain(num_resnets=(1,))),
    ("num_resnets", lambda: plain(num_resnets=(0, 1))),
    ("num_resnets", lambda: plain(num_resnets=(1, 1000))),
    ("num_attention_layers", lambda: plain(num_attention_layers=(0, 1, 1))),
    ("num_attention_layers", lambda: plain(num_attention_layers=(0, -1))),
    ("num_groups", lambda: plain(num_groups=0)),
    ("num_groups", lambda: plain(num_groups=24)),
    ("temb_dim", lambda: plain(temb_dim=36)),
    ("temb_dim", lambda: plain(temb_dim=1 << 20)),
    ("temb_dim", lambda: plain(temb_dim=-8)),
    ("dropout", lambda: plain(dropout=1.0)),
    ("dropout", lambda: plain(dropout=-0.1)),
    ("micro_conditions", lambda: plain(micro_conditions={"a.b": 1.0})),
    ("micro_conditions", lambda: plain(micro_conditions={"scale": 0.0})),
    ("text_dim", lambda: plain(text_dim=0)),
    ("text_proj_dim", lambda: plain(text_proj_dim=-1)),
    ("text_proj_dim", lambda: plain(text_dim=None, text_proj_dim=32)),
    ("num_text_head_layers", lambda: plain(text_dim=None, num_text_head_layers=1)),
    ("num_text_head_layers", lambda: plain(num_text_head_layers=-1)),
    ("text_proj_dim", lambda: plain(text_dim=12, num_text_head_layers=1)),
    ("text_dim", lambda: around(plain(), text_dim=16)),
    ("temb_dim", lambda: around(plain(), temb_dim=64)),
    ("channels", lambda: around(plain(), **one_stage())),
    ("student", lambda: around(plain(), student=Student())),
    ("inner", lambda: around(around(around(around(around(plain())))))),
    ("temporal", lambda: plain(temporal=True)),
    ("temporal_", lambda: plain(temporal_positional_encoding=True)),
    ("temporal_", lambda: plain(num_temporal_attention_layers=(0, 1))),
    ("num_temporal_attention_layers", lambda: video(plain(), num_temporal_attention_layers=(1,))),
    ("num_temporal_attention_layers", lambda: video(plain(), temporal_spatial_resampling=True)),
    (
        "num_temporal_attention_layers",
        lambda: video(plain(), num_temporal_attention_layers=(0, -1, 0)),
    ),
    ("channels", lambda: video(plain(), channels=(32, 48, 32), num_groups=16)),
    ("inner", lambda: around(video(plain()))),
    ("adapters_per_frame", lambda: around(plain(), adapters_per_frame=True)),
    ("channels", lambda: around(plain(), temporal=True)),  # two stages halve the frames once
    ("schedule.num_steps", lambda: ScheduleConfig(num_steps=1)),
    ("schedule.beta_start", lambda: ScheduleConfig(beta_start=0.5, beta_end=0.1)),
    ("high_noise_share", lambda: DiffusionConfig(high_noise_share=1.5)),
    ("level_weights", lambda: DiffusionConfig(level_weights=(0.0, 0.0))),
    ("level_weights", lambda: DiffusionConfig(level_weights=())),
    ("mixed_ratio", lambda: DiffusionConfig(mixed_ratio=(1.0, -1.0))),
    ("rescale_signal", lambda: DiffusionConfig(rescale_signal=0.0)),
    ("level_weights", lambda: model(diffusion=DiffusionConfig(level_weights=(1.0,)))),
    ("mixed_ratio", lambda: model(diffusion=DiffusionConfig(mixed_ratio=(1.0, 1.0, 1.0)))),
    ("text.max_tokens", lambda: TextConfig(max_tokens=0)),
    ("text.trainable", lambda: TextConfig(max_tokens=8, trainable=True)),
    ("vocab_size", lambda: encoder(vocab_size=1 << 21)),
    ("d_model", lambda: encoder(d_model=0)),
    ("d_kv", lambda: encoder(d_kv=-1)),
    ("d_ff", lambda: encoder(d_ff=1 << 18)),
    ("num_layers", lambda: encoder(num_layers=10**9)),
    ("num_heads", lambda: encoder(num_heads=0)),
    ("relative_buckets", lambda: encoder(relative_buckets=6)),
    ("relative_buckets", lambda: encoder(relative_buckets=512)),
    ("relative_max_distance", lambda: encoder(relative_max_distance=1 << 20)),
    ("dropout", lambda: encoder(dropout=1.0)),
    ("norm_eps", lambda: encoder(norm_eps=0.0)),
    ("channels", lambda: plain(channels=(32,) * 15)),
    ("billion parameters", lambda: model(model=plain(**WIDE))),
    ("side", lambda: model(side=18)),
    ("side", lambda: model(side=0)),
    ("side", lambda: model(side=1 << 20)),
    ("text", lambda: model(text=None)),
    ("format", lambda: model(format=2)),
    ("eta", lambda: SamplerConfig(eta=1.5)),
    ("guidance", lambda: SamplerConfig(guidance_scale=1e6)),
    ("steps", lambda: TrainConfig(steps=0)),
    ("accumulate", lambda: TrainConfig(steps=1, batch_size=3, accumulate=4)),
    ("ema_decay", lambda: TrainConfig(steps=1, ema_decay=1.0)),
    ("caption_dropout", lambda: TrainConfig(steps=1, caption_dropout=1.0)),
]


def encoder(**changes: Any) -> T5Config:
    sizes = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return T5Config(**sizes | changes)


def one_stage() -> dict[str, Any]:
    return {"channels": (32,), "num_resnets": (1,), "num_attention_layers": (0,)}


@pytest.mark.parametrize(
    ("field", "build"), [pytest.param(f, b, id=f"{i}-{f}") for i, (f, b) in enumerate(IMPOSSIBLE)]
)
def test_an_impossible_configuration_is_refused_by_field(
    field: str, build: Callable[[], object]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert field in str(caught.value)
    assert str(caught.value).endswith(".")


def test_the_text_encoder_must_fit_the_network() -> None:
    text = preset("tiny").text
    assert text is not None
    assert text.encoder is not None
    wide = dataclasses.replace(text, encoder=dataclasses.replace(text.encoder, d_model=64))
    with pytest.raises(ConfigError, match=r"text\.encoder\.d_model: expected 32"):
        model(text=wide)


def test_scales_and_sides_multiply_up_the_nest() -> None:
    config = preset("mdm1024")
    assert config.model.scales == (16, 4, 1)
    assert config.sides == (1024, 256, 64)
    assert video(plain()).scales == (2, 1)
    assert video(video(plain())).scales == (4, 2, 1)


def test_mixed_fractions_add_up_the_shares() -> None:
    assert DiffusionConfig(mixed_ratio=(2.0, 1.0)).mixed_fractions == pytest.approx((2 / 3, 1.0))
    assert DiffusionConfig(mixed_ratio=(1.0, 1.0, 2.0)).mixed_fractions == (0.25, 0.5, 1.0)


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (0, {"low": 1}, "x: expected 1 or more, got 0."),
        (9, {"low": 1, "high": 8}, "x: expected 1 to 8, got 9."),
        (9, {"low": 1, "high": 8, "what": "levels"}, "x: expected 1 to 8 levels, got 9."),
        (1.0, {"low": 0, "high": 1, "below": True}, "x: expected from 0 to below 1, got 1.0."),
        (0.0, {"low": 0, "high": 1, "above": True}, "x: expected more than 0 up to 1, got 0.0."),
        (
            0.0,
            {"low": 0, "high": 1, "above": True, "below": True},
            "x: expected between 0 and 1, got 0.0.",
        ),
        (0, {"low": 0, "above": True}, "x: expected more than 0, got 0."),
        (
            float("inf"),
            {"low": 0, "below": True},
            "x: expected a finite number, 0 or more, got inf.",
        ),
    ],
)
def test_a_number_out_of_its_range_is_refused_and_so_is_nan(
    value: float, limits: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        in_range("x", value, **limits)
    assert str(caught.value) == message
    with pytest.raises(ConfigError, match="got nan"):
        in_range("x", float("nan"), **limits)


def test_the_ends_of_a_range_belong_to_it_and_none_is_not_given() -> None:
    for value in (1, 8, None):
        in_range("x", value, 1, 8)
    in_range("x", float("inf"), 0)


def test_a_model_has_no_pace_that_files_of_its_clips_cannot_have() -> None:
    """The ranges of config.json, of files and of bundles are one."""
    for fps in (0.05, 241.0, float("nan")):
        with pytest.raises(ConfigError, match=r"video.fps: expected 0.1 to 240.0"):
            VideoConfig(frames=16, fps=fps)
        with pytest.raises(ConfigError, match=r"fps: expected 0.1 to 240.0"):
            check_fps(fps)
    for fps in (LEAST_FPS, MOST_FPS):
        VideoConfig(frames=16, fps=fps)
        check_fps(fps)
