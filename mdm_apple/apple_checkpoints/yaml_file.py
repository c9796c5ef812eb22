"""Apple's YAML configuration files, read strictly.

Input: a file in the layout of apple/ml-mdm's configs/models. Output: a ModelConfig, and one
sentence for each unused setting in the file. No YAML tag builds an object, aliases are refused, and
size and depth are limited before anything is composed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mdm_apple.apple_checkpoints.fields import (
    diffusion_config_from_apple,
    in_words_of_the_file,
    unet_config_from_apple,
)
from mdm_apple.apple_checkpoints.values import Fields
from mdm_apple.config.model import ModelConfig, NullPrompt, Padding, Provenance, TextConfig
from mdm_apple.config.network import T5Config
from mdm_apple.config.presets import FLAN_T5, PUBLISHED_AT
from mdm_apple.config.strict_json import unknown_name
from mdm_apple.errors import ConfigError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24

_DEPTH_OF_MODEL = {
    "unet": 1,
    "nested_unet": 2,
    "nested2_unet": 3,
    "nested3_unet": 4,
    "nested4_unet": 5,
}


def _names(text: str) -> list[str]:
    return text.split()


# Our names of settings -> the file's, in refusals that the settings' own checks make.
_READER_NAMES = {
    "side": "reader_config.image_size",
    "text.max_tokens": "reader_config.max_token_length",
    "model.text_dim": "unet_config.conditioning_feature_dim",
    "text.encoder": "text_model",
}

# settings of the original's programs that do not affect the network, the noise or the text
_PROGRAM_KEYS = _names(
    "avg_lm_steps batch_size dataset_config device epochs eval_freq file_list fp16 "
    "gradient_clip_norm local_rank log_freq loglevel loss_factor lr lr_scaling_factor metrics "
    "min_examples model_config_file model_file multinode name num_epochs num_eval_batches "
    "num_gradient_accumulations num_training_steps output_dir port prediction_length "
    "pretrained_vision_file reader_config_file resume_from_ema sample_dir save_freq seed "
    "test_file_list use_adamw use_lm_mask use_precomputed_text_embeddings vocab_file "
    "warmup_steps"
)
_READER_KEYS = _names(
    "bucket endpoint_url max_caption_length num_kept_files num_readers padding_token random_crop "
    "reader_buffer_size shuffle_buffer_size smaller_side_size use_tokenizer_scores"
)
_READER_SETTINGS = _names(
    "append_eos image_size max_token_length pad_to_max_length prepad_bos prepad_caption_with_space"
)

# keys that belong in a section; the original also ignores them at the top level
_SECTION_OF = {
    **dict.fromkeys(
        _names(
            "sampler_config model_output_scale use_vdm_loss_weights use_double_loss "
            "multi_res_weights no_use_residual use_random_interp mixed_ratio random_downsample "
            "average_downsample mid_downsample"
        ),
        "diffusion_config",
    ),
    **dict.fromkeys(
        _names(
            "num_diffusion_steps reproject_signal schedule_type prediction_type loss_target_type "
            "beta_start beta_end rescale_schedule rescale_signal schedule_shifted "
            "schedule_shifted_power"
        ),
        "diffusion_config.sampler_config",
    ),
    **dict.fromkeys(
        _names(
            "num_resnets_per_resolution temporal_dim attention_levels num_attention_layers "
            "conditioning_feature_dim conditioning_feature_proj_dim num_lm_head_layers "
            "masked_cross_attention resolution_channels skip_mid_blocks skip_cond_emb nesting "
            "micro_conditioning temporal_mode resnet_config inner_config skip_normalization"
        ),
        "unet_config",
    ),
    **dict.fromkeys([*_READER_KEYS, *_READER_SETTINGS], "reader_config"),
}


@dataclass(frozen=True)
class AppleYaml:
    """One of Apple's files: its configuration, and a sentence for each unused setting."""

    config: ModelConfig
    notices: tuple[str, ...]


def read_apple_yaml(path: Path, encoder: T5Config | None = None) -> AppleYaml:
    """Read and convert one file; raises ConfigError with one sentence.

    The published files have duplicate keys at the top level and in the reader's settings. There the
    last one counts, as in the original, and the others are reported.

    Args:
        encoder: the text encoder, instead of the one that the file names.
    """
    notices: list[str] = []
    data = _load(path, notices)
    try:
        return AppleYaml(_model_config(data, encoder, notices), tuple(notices))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _model_config(
    data: Mapping[str, Any], given: T5Config | None, notices: list[str]
) -> ModelConfig:
    taken = Fields(data, "top level", notices)
    unet, diffusion = taken.mapping("unet_config"), taken.mapping("diffusion_config")
    if unet is None:
        raise ConfigError("key 'unet_config' is missing; expected one of Apple's model files.")
    encoder_name = taken.text("text_model", "google/flan-t5-xl")
    encoder = given or FLAN_T5.get(encoder_name)
    if encoder is None:
        raise ConfigError(
            f"text_model: {encoder_name!r} is not known; give the folder of this T5 encoder. "
            f"{unknown_name(encoder_name, FLAN_T5)}"
        )
    if taken.flag("categorical_conditioning", False):
        raise ConfigError("categorical_conditioning: 1 is not supported; this model reads text.")
    model = unet_config_from_apple(unet, encoder.d_model, notices)
    _check_architecture(taken, len(model.levels))
    if diffusion is None:
        raise ConfigError("key 'diffusion_config' is missing; expected one of Apple's model files.")
    settings = diffusion_config_from_apple(diffusion, len(model.levels), notices)
    try:
        side, reader = _reader(taken)
        config = ModelConfig(
            model=model,
            side=side,
            diffusion=settings,
            text=replace(reader, encoder=encoder, source=encoder_name),
            provenance=Provenance(source=PUBLISHED_AT),
        )
    except ConfigError as error:
        raise ConfigError(in_words_of_the_file(str(error), _READER_NAMES)) from None
    _report_unused(data, taken, notices)
    return config


def _check_architecture(taken: Fields, levels: int) -> None:
    for key in ("model", "vision_model"):  # two spellings of one option
        name = taken.text(key, "")
        if name and name not in _DEPTH_OF_MODEL:
            raise ConfigError(
                f"{key}: {name!r} is not known. {unknown_name(name, _DEPTH_OF_MODEL)}"
            )
        if name and _DEPTH_OF_MODEL[name] != levels:
            raise ConfigError(
                f"{key}: {name} has {_DEPTH_OF_MODEL[name]} levels, but unet_config describes "
                f"{levels}."
            )


def _reader(taken: Fields) -> tuple[int, TextConfig]:
    """The side in pixels, and how captions become tokens."""
    reader = taken.section("reader_config")
    sample_side = taken.integer("sample_image_size", -1)
    side = reader.integer("image_size", -1)
    if side <= 0:
        side = sample_side
    if side <= 0:
        raise ConfigError("reader_config.image_size: expected the side of the pictures in pixels.")
    if sample_side > 0 and sample_side != side:
        taken.notice(f"sample_image_size: {sample_side} is not used; reader_config says {side}.")
    tokens = reader.integer("max_token_length", -1)
    if tokens <= 0:
        tokens = 128
        reader.notice("reader_config.max_token_length: not given; 128 is used, as published.")
    if not reader.flag("append_eos", True) or reader.flag("prepad_bos", False):
        raise ConfigError(
            f"{reader.where}: append_eos: false and prepad_bos: true are not supported; captions "
            "end with the end token and begin with none."
        )
    padding: Padding = "max_tokens" if reader.flag("pad_to_max_length", False) else "longest"
    null: NullPrompt = "space" if reader.flag("prepad_caption_with_space", True) else "end"
    reader.discard(*_READER_KEYS)
    reader.close()
    return side, TextConfig(tokens, padding=padding, null_prompt=null)


def _report_unused(data: Mapping[str, Any], taken: Fields, notices: list[str]) -> None:
    settings = [key for key in data if key in _PROGRAM_KEYS]
    if settings:
        notices.append(f"Settings of the original's programs are not used: {', '.join(settings)}.")
    for key in data:
        if key in _SECTION_OF:
            notices.append(
                f"{key}: not used, because at the top level the original ignores it too; it "
                f"belongs in {_SECTION_OF[key]}."
            )
    taken.discard(*_PROGRAM_KEYS, *_SECTION_OF)
    taken.close(refuse=False)


def _load(path: Path, notices: list[str]) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: expected a YAML file of at most {MAX_BYTES // 1024} KiB.")
    try:
        text = raw.decode("utf-8")
        _check_events(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _check_keys(node, "", notices)
        data: object = None if node is None else loader.construct_document(node)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not plain YAML ({_one_line(error)}).") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:  # a date or a number that Python cannot hold
        raise ConfigError(f"{path}: holds a value that cannot be read ({error}).") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a list of 'key: value' settings.")
    return data  # pyright: ignore[reportUnknownVariableType]


def _check_events(text: str) -> None:
    """Refuse aliases and deep nesting before anything is composed."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError("aliases (*name) are not supported; write the value out.")
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(f"expected at most {MAX_DEPTH} levels of nesting.")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1


class _Loader(yaml.SafeLoader):
    """Loads only plain values with text keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        built = super().construct_mapping(node, deep=True)
        return {str(key): value for key, value in built.items()}


def _check_keys(node: yaml.Node, section: str, notices: list[str]) -> None:
    """Every key must be text; keys that shape the model must be unique."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, section, notices)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"line {line}: expected a name as the key.")
        key = str(key_node.value)
        if key in seen:
            if section not in ("", "reader_config"):
                raise ConfigError(f"{section}: {key} appears twice (line {line}); keep one.")
            notices.append(f"{key}: appears twice (line {line}); the last one counts.")
        seen[key] = value
    for key, value in seen.items():  # of duplicates, keep only the last
        _check_keys(value, section or key, notices)


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())[:200]
