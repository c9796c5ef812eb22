"""Conversion of Apple's configuration fields to ours: the network and the diffusion settings.

Input: plain mappings with the field names of apple/ml-mdm, whose values may be text ("2,3"), lists
or numbers, with -1 or null for "absent". Output: checked configurations. An absent field has the
original's default. Settings that the original cannot run are refused by name; settings without
effect on the network are reported in `notices`, or refused if the caller gives no such list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from mdm_apple.apple_checkpoints.values import Fields
from mdm_apple.config.model import (
    DiffusionConfig,
    Prediction,
    ScheduleConfig,
    ScheduleKind,
    Threshold,
)
from mdm_apple.config.network import MAX_NEST, UNetConfig
from mdm_apple.errors import ConfigError

_SCHEDULES: dict[str, ScheduleKind] = {
    "COSINE": "cosine",
    "DDPM": "linear",
    "DEEPFLOYD": "deepfloyd",
    "SIGMOID": "sigmoid",
}
_PREDICTIONS: dict[str, Prediction] = {"DDPM": "eps", "DDIM": "eps", "V_PREDICTION": "v"}
# Our names of settings -> the file's, in refusals that the settings' own checks make.
_NETWORK_NAMES = {
    "channels": "resolution_channels",
    "num_resnets": "num_resnets_per_resolution",
    "temb_dim": "temporal_dim",
    "num_groups": "resnet_config.num_groups_norm",
    "dropout": "resnet_config.dropout",
    "micro_conditions": "micro_conditioning",
    "text_dim": "conditioning_feature_dim",
    "text_proj_dim": "conditioning_feature_proj_dim",
    "num_text_head_layers": "num_lm_head_layers",
    "temporal": "temporal_mode",
    "temporal_spatial_resampling": "temporal_spatial_ds",
    "inner": "inner_config",
}
_DIFFUSION_NAMES = {
    "schedule.num_steps": "diffusion_config.sampler_config.num_diffusion_steps",
    "schedule.beta_start": "diffusion_config.sampler_config.beta_start",
    "schedule.shift_power": "diffusion_config.sampler_config.schedule_shifted_power",
    "diffusion.level_weights": "diffusion_config.multi_res_weights",
    "diffusion.mixed_ratio": "diffusion_config.mixed_ratio",
    "diffusion.rescale_signal": "diffusion_config.sampler_config.rescale_signal",
}
_THRESHOLDS: dict[str, Threshold] = {
    "NONE": "none",
    "CLIP": "clip",
    "DYNAMIC": "dynamic",
    "DYNAMIC_IF": "dynamic_if",
}


def unet_config_from_apple(
    fields: Mapping[str, Any], text_dim: int | None, notices: list[str] | None = None
) -> UNetConfig:
    """The network that Apple's `unet_config` fields describe.

    Args:
        fields: one level; `inner_config` holds the next level.
        text_dim: width of the language model's features; None or -1 takes the outermost
            `conditioning_feature_dim`; if that is absent too, there is no text.
        notices: collects sentences about unused fields.
    """
    own = fields.get("conditioning_feature_dim")
    given = text_dim if text_dim is not None and text_dim > 0 else None
    width = given or (own if isinstance(own, int) and own > 0 else None)
    return _level(fields, "unet_config", width, 1, notices)


def _level(
    fields: Mapping[str, Any], where: str, text: int | None, depth: int, notices: list[str] | None
) -> UNetConfig:
    if depth > MAX_NEST:
        raise ConfigError(f"{where}: at most {MAX_NEST} levels can be nested.")
    taken = Fields(fields, where, notices)
    inner_fields = taken.mapping("inner_config")
    outer = inner_fields is not None
    inner = (
        _level(inner_fields, f"{where}.inner_config", text, depth + 1, notices) if outer else None
    )

    channels = taken.numbers("resolution_channels", (128, 256, 256, 512, 1024))
    stages = len(channels)
    layers = _broadcast(taken.numbers("num_attention_layers", (1,)), stages)
    attended = taken.numbers("attention_levels", (2, 3))
    if taken.given("attention_levels") and not all(0 <= i < stages for i in attended):
        raise ConfigError(
            f"{where}.attention_levels: expected 0 to {stages - 1}, one for each width in "
            f"resolution_channels, got {', '.join(map(str, attended))}."
        )
    attention = tuple(n if i in attended else 0 for i, n in enumerate(layers))
    mid_blocks = not taken.flag("skip_mid_blocks", outer)
    resnet = taken.section("resnet_config")
    projection = _text_path(taken, text, inner, bool(sum(attention)) or mid_blocks)
    head_layers = taken.integer("num_lm_head_layers", 0)
    masked = taken.flag("masked_cross_attention", True)
    normalize, freeze, interp = _outer_flags(taken) if outer else (False, False, False)
    if depth > 1 and not taken.flag("nesting", True):
        raise ConfigError(f"{where}.nesting: expected true on a level inside another one.")
    taken.discard("nesting", "conditioning_feature_dim")
    try:
        config = UNetConfig(
            channels=channels,
            num_resnets=_broadcast(taken.numbers("num_resnets_per_resolution", (2,)), stages),
            num_attention_layers=attention,
            attention_ffn=resnet.flag("use_attention_ffn", False),
            mid_blocks=mid_blocks,
            temb_dim=taken.dimension("temporal_dim"),
            num_groups=resnet.integer("num_groups_norm", 32),
            dropout=resnet.number("dropout", 0.0),
            micro_conditions=_micro_conditions(taken),
            normalize_input=normalize,
            text_dim=None if outer else text,
            text_proj_dim=projection,
            # outer levels have these two without using them: the innermost owns the text path
            num_text_head_layers=head_layers if text and not outer else 0,
            masked_cross_attention=masked or outer,
            interp_conditioning=interp,
            freeze_inner=freeze,
            inner=inner,
            **_temporal(taken, outer),
        )
    except ConfigError as error:
        message = in_words_of_the_file(str(error), _NETWORK_NAMES)
        raise ConfigError(message if message.startswith(where) else f"{where}.{message}") from None
    resnet.discard("num_channels", "output_channels")  # placeholders, filled in per block
    resnet.close()
    taken.close()
    return config


def _text_path(
    taken: Fields, text: int | None, inner: UNetConfig | None, attends: bool
) -> int | None:
    """The width after the projection, on the innermost level only; refuses chains that cannot run.

    In the original, each level replaces the text width with its own projection width before it
    builds the next level, but the innermost projection receives the language model's raw features.
    """
    projection = taken.dimension("conditioning_feature_proj_dim")
    skip_pooled = taken.flag("skip_cond_emb", inner is not None)
    if text is None:
        return None
    if inner is None:
        if skip_pooled:
            raise ConfigError(
                f"{taken.where}.skip_cond_emb: expected false on the innermost level of a network "
                "with text; without the pooled text the original cannot run."
            )
        return projection
    if not skip_pooled:
        raise ConfigError(
            f"{taken.where}.skip_cond_emb: expected true on an outer level; false adds weights "
            "that are never used."
        )
    if projection not in (None, text):
        raise ConfigError(
            f"{taken.where}.conditioning_feature_proj_dim: expected -1 or the width of the text "
            f"features ({text}) on an outer level, got {projection}; the levels inside would "
            "expect features of that width."
        )
    if attends and inner.text_width != text:
        raise ConfigError(
            f"{taken.where}: attention or middle blocks of an outer level expect text {text} wide, "
            f"but the innermost level provides {inner.text_width}; make its "
            "conditioning_feature_proj_dim the same or -1."
        )
    return None


def _outer_flags(taken: Fields) -> tuple[bool, bool, bool]:
    """(normalize_input, freeze_inner, interp_conditioning) of an outer level."""
    if taken.flag("skip_inner_unet_input", False):
        raise ConfigError(
            f"{taken.where}.skip_inner_unet_input: true is not supported; the original fails on it."
        )
    pretrained = taken.value("initialize_inner_with_pretrained", None)
    if pretrained not in (None, "None"):
        taken.notice(
            f"{taken.where}.initialize_inner_with_pretrained: {pretrained!r} is not loaded; "
            "give the inner weights with --init or --grow."
        )
    return (
        not taken.flag("skip_normalization", False),
        taken.flag("freeze_inner_unet", False),
        taken.flag("interp_conditioning", False),
    )


def _temporal(taken: Fields, outer: bool) -> dict[str, Any]:
    temporal = taken.flag("temporal_mode", False)
    spatial = taken.flag("temporal_spatial_ds", False)
    positions = taken.flag("temporal_positional_encoding", False)
    layers = taken.numbers("num_temporal_attention_layers", ())
    if temporal and not outer:
        raise ConfigError(
            f"{taken.where}.temporal_mode: true needs an inner_config; the original fails on a "
            "temporal UNet without one."
        )
    if not temporal:
        if any(layers):
            raise ConfigError(f"{taken.where}.num_temporal_attention_layers: needs temporal_mode.")
        return {}  # the other two have no effect
    return {
        "temporal": True,
        "temporal_spatial_resampling": spatial,
        "temporal_positional_encoding": positions,
        "num_temporal_attention_layers": layers,
    }


def _micro_conditions(taken: Fields) -> dict[str, float]:
    text = taken.text("micro_conditioning", "")
    conditions: dict[str, float] = {}
    for pair in text.split(",") if text else ():
        name, colon, default = pair.partition(":")
        try:
            value = float(default)
        except ValueError:
            value = math.nan
        if not colon or not math.isfinite(value) or name in conditions:
            raise ConfigError(
                f"{taken.where}.micro_conditioning: expected different NAME:DEFAULT pairs "
                f"separated by commas, such as 'scale:64', got {text[:60]!r}."
            )
        conditions[name] = value
    return conditions


def diffusion_config_from_apple(
    fields: Mapping[str, Any], levels: int, notices: list[str] | None = None
) -> DiffusionConfig:
    """The noise, prediction and loss from Apple's `diffusion_config` for a nest of `levels`."""
    taken = Fields(fields, "diffusion_config", notices)
    sampler = taken.section("sampler_config")
    prediction = sampler.choice("prediction_type", _PREDICTIONS, "DDPM")
    if sampler.value("loss_target_type", None) in (None, "None"):
        loss_target = prediction
    else:
        loss_target = sampler.choice("loss_target_type", _PREDICTIONS, "DDPM")
    if sampler.number("rescale_schedule", 1.0) > 1:
        raise ConfigError(
            "diffusion_config.sampler_config.rescale_schedule: more than 1 is not supported; the "
            "original fails on it. Use schedule_shifted."
        )
    shifted = sampler.flag("schedule_shifted", False)
    power = sampler.number("schedule_shifted_power", 1.0)
    signal = sampler.optional_number("rescale_signal")
    scale = taken.number("model_output_scale", 0.0)
    weights, mixed = _nested_loss(taken, levels) if levels > 1 else (None, None)
    if levels > 1 and signal not in (None, 0, 1):
        sampler.notice(f"{sampler.where}.rescale_signal: {signal} has no effect on a nested model.")
    if levels > 1 and scale:
        taken.notice(f"{taken.where}.model_output_scale: {scale} has no effect on a nested model.")
    for name in ("reproject_signal", "predict_variances"):
        if sampler.flag(name, False):
            sampler.notice(f"{sampler.where}.{name}: true has no effect and is not used.")
    vdm = taken.flag("use_vdm_loss_weights", True)
    threshold = sampler.choice("threshold_function", _THRESHOLDS, "CLIP")
    kind = sampler.choice("schedule_type", _SCHEDULES, "DDPM")
    steps = sampler.integer("num_diffusion_steps", 32)
    start, end = sampler.number("beta_start", 1e-4), sampler.number("beta_end", 2e-2)
    sampler.close()
    taken.close()
    try:
        return DiffusionConfig(
            schedule=ScheduleConfig(kind, steps, start, end, power if shifted else None),
            prediction=prediction,
            loss_target=loss_target,
            loss_weighting="vdm" if vdm else "plain",
            level_weights=weights,
            mixed_ratio=mixed,
            rescale_signal=signal if levels == 1 and signal not in (None, 0, 1) else None,
            output_scale=scale if levels == 1 else 0.0,
            threshold=threshold,
        )
    except ConfigError as error:
        raise ConfigError(in_words_of_the_file(str(error), _DIFFUSION_NAMES)) from None


def in_words_of_the_file(message: str, names: Mapping[str, str]) -> str:
    """A refusal that begins with the names of settings as they stand in the file, not with ours."""
    head, colon, rest = message.partition(":")
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![\w.])(?:{known})(?!\w)", lambda m: names[m.group()], head) + colon + rest


def _nested_loss(
    taken: Fields, levels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """(level_weights, mixed_ratio), both highest resolution first."""
    if not taken.flag("no_use_residual", False):
        raise ConfigError(
            f"{taken.where}.no_use_residual: expected true; false, also the original's default, "
            "asks for residual prediction, on which the original fails."
        )
    for name in ("use_random_interp", "random_downsample", "average_downsample", "mid_downsample"):
        if taken.flag(name, False):
            taken.notice(f"{taken.where}.{name}: true has no effect and is not used.")
    weights = taken.ratio("multi_res_weights", levels)
    mixed = taken.ratio("mixed_ratio", levels)
    if taken.flag("use_double_loss", False):
        return weights, mixed
    if weights is not None:
        raise ConfigError(f"{taken.where}.multi_res_weights: needs use_double_loss: true.")
    return (1.0,) + (0.0,) * (levels - 1), mixed


def _broadcast(values: tuple[int, ...], stages: int) -> tuple[int, ...]:
    return values * stages if len(values) == 1 else values
