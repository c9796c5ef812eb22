"""Apple's configuration files and fields."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_fixtures import Fixture, golden_folders
from safetensors import safe_open

from mdm_apple.apple_checkpoints.checkpoint import as_apple_reads
from mdm_apple.apple_checkpoints.fields import diffusion_config_from_apple, unet_config_from_apple
from mdm_apple.apple_checkpoints.yaml_file import read_apple_yaml
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.shapes import state_shapes
from mdm_apple.errors import ConfigError

LEVELS = {"tiny_plain": 1, "tiny_n2": 2, "tiny_n3": 3, "tiny_t2": 2}


def fixtures(field: str) -> list[Any]:
    found = []
    for folder in golden_folders():
        for path in sorted(folder.glob("*.json")):
            if field in Fixture(path).info:
                found.append(pytest.param(Fixture(path), id=f"{folder.name}-{path.stem}"))
    return found


# --- fields ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", fixtures("config"))
def test_fixture_networks_convert_to_the_weights_they_hold(fixture: Fixture) -> None:
    prefix = "init." if fixture.kind == "train" else "sd."
    with safe_open(fixture.path.with_suffix(".safetensors"), "numpy") as file:
        stored = {
            name.removeprefix(prefix): tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118
            if name.startswith(prefix)
        }
    dim = fixture.info["lm_dim"]
    assert state_shapes(unet_config_from_apple(fixture.info["config"], dim)) == stored


@pytest.mark.parametrize("fixture", fixtures("diffusion_config"))
def test_fixture_diffusion_settings_convert(fixture: Fixture) -> None:
    fields = fixture.info["diffusion_config"]
    levels = LEVELS.get(fixture.info.get("weights", "tiny_plain"), 1)
    config = diffusion_config_from_apple(fields, levels)
    assert config.schedule.num_steps == fields["sampler_config"]["num_diffusion_steps"]
    given = fixture.info.get("mixed_ratio")
    assert config.mixed_fractions == (None if given is None else pytest.approx(tuple(given)))


PLAIN: dict[str, Any] = {
    "resolution_channels": "32,64",
    "num_resnets_per_resolution": "1",
    "attention_levels": "1",
    "num_attention_layers": "2",
    "micro_conditioning": "scale:64,watermark_score:0",
    "conditioning_feature_proj_dim": 32,
}
NESTED: dict[str, Any] = {
    "resolution_channels": [32, 32],
    "num_resnets_per_resolution": [1, 1],
    "attention_levels": "",
    "temporal_dim": 128,
    "inner_config": PLAIN,
}


def test_text_lists_are_read_and_single_values_spread_over_the_stages() -> None:
    assert unet_config_from_apple(PLAIN, 24) == UNetConfig(
        channels=(32, 64),
        num_resnets=(1, 1),
        num_attention_layers=(0, 2),
        micro_conditions={"scale": 64.0, "watermark_score": 0.0},
        text_dim=24,
        text_proj_dim=32,
    )


def test_outer_levels_default_to_no_middle_blocks_and_normalised_input() -> None:
    outer = unet_config_from_apple(NESTED, 24)
    assert (outer.mid_blocks, outer.normalize_input, outer.text_dim) == (False, True, None)
    assert outer.inner == unet_config_from_apple(PLAIN, 24)


@pytest.mark.parametrize("absent", [None, -1])
def test_without_a_text_width_there_is_no_text(absent: int | None) -> None:
    assert unet_config_from_apple(PLAIN, absent).text_width is None


def test_text_width_comes_from_the_fields_where_it_is_not_handed_in() -> None:
    assert unet_config_from_apple({**PLAIN, "conditioning_feature_dim": 24}, None).text_dim == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip_inner_unet_input": True}, "skip_inner_unet_input: true is not supported"),
        ({"conditioning_feature_proj_dim": 16}, r"expected -1 or the width .* \(24\)"),
        ({"attention_levels": [0]}, "attention or middle blocks of an outer level expect text 24"),
        ({"skip_mid_blocks": False}, "attention or middle blocks of an outer level"),
        ({"skip_cond_emb": False}, "skip_cond_emb: expected true on an outer level"),
        ({"initialize_inner_with_pretrained": "x"}, "'x' is not loaded"),
        ({"inner_config": {**PLAIN, "skip_cond_emb": True}}, "skip_cond_emb: expected false"),
        ({"inner_config": {**PLAIN, "temporal_mode": True}}, "needs an inner_config"),
        ({"inner_config": {**PLAIN, "nesting": False}}, "nesting: expected true"),
        ({"inner_config": 3}, "inner_config: expected a group of fields"),
        ({"temporal_dim": 64}, "unet_config.temporal_dim: all levels of a nest need the same"),
        ({"resolution_channels": "32,x"}, "resolution_channels: expected whole numbers"),
        ({"resolution_channels": [32, 32.5]}, "resolution_channels: expected a list of whole"),
        ({"resolution_channels": [32, 10**18]}, "unet_config.resolution_channels: expected 1 to"),
        ({"attention_levels": [0, 2]}, "unet_config.attention_levels: expected 0 to 1, one for"),
        (
            {"resolution_channels": [32, 1 << 99999]},
            "resolution_channels: expected a list of whole",
        ),
        ({"temporal_dim": 1 << 99999}, "temporal_dim: expected a whole number, got a huge number"),
        ({"num_resnets_per_resolution": 1.5}, "expected a list of at most 64 whole numbers"),
        ({"skip_normalization": "yes"}, "skip_normalization: expected true or false, got 'yes'"),
        ({"micro_conditioning": "scale"}, "micro_conditioning: expected different NAME:DEFAULT"),
        ({"micro_conditioning": "scale:nan"}, "micro_conditioning: expected different"),
        ({"micro_conditioning": 64}, "micro_conditioning: expected text in quotes, got 64"),
        ({"num_temporal_attention_layers": [1, 1]}, "num_temporal_attention_layers: needs"),
        ({"resnet_config": {"num_groups_norm": "8"}}, "num_groups_norm: expected a whole number"),
        ({"resnet_config": {"num_groups": 8}}, "unknown key 'num_groups' is not used"),
        ({"skip_normalisation": True}, "Did you mean 'skip_normalization'"),
    ],
)
def test_networks_that_cannot_run_are_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        unet_config_from_apple({**NESTED, **changes}, 24)


def test_too_many_levels_are_refused() -> None:
    fields: dict[str, Any] = PLAIN
    for _ in range(2000):
        fields = {**NESTED, "inner_config": fields}
    with pytest.raises(ConfigError, match="at most 5 levels"):
        unet_config_from_apple(fields, None)


def test_conversion_leaves_the_fields_alone_and_repeats() -> None:
    fields = copy.deepcopy(NESTED)
    assert unet_config_from_apple(fields, 24) == unet_config_from_apple(fields, 24)
    assert fields == NESTED


NOISE: dict[str, Any] = {
    "sampler_config": {"num_diffusion_steps": 100, "schedule_type": "deepfloyd"},
    "no_use_residual": True,
    "use_double_loss": True,
}


def test_single_loss_counts_the_highest_resolution_only() -> None:
    config = diffusion_config_from_apple({**NOISE, "use_double_loss": False}, 3)
    assert config.level_weights == (1.0, 0.0, 0.0)


def test_absent_diffusion_fields_have_the_originals_defaults() -> None:
    config = diffusion_config_from_apple({}, 1)
    assert (config.schedule.kind, config.schedule.num_steps) == ("linear", 32)
    assert (config.prediction, config.loss_target, config.loss_weighting) == ("eps", "eps", "vdm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_use_residual": False}, "no_use_residual: expected true"),
        ({"use_double_loss": False, "multi_res_weights": "4:1"}, "needs use_double_loss"),
        ({"multi_res_weights": "16:4:1"}, "multi_res_weights: expected 2 numbers"),
        ({"mixed_ratio": "2:x"}, "mixed_ratio: expected 2 numbers"),
        ({"model_output_scale": 1 << 99999}, "model_output_scale: expected a finite number"),
        ({"mixed_ratio": 121}, "mixed_ratio: expected text in quotes, got 121"),
        ({"mixed_ratio": "0:0"}, "mixed_ratio: expected one weight"),
        ({"model_output_scale": 2}, "model_output_scale: 2.0 has no effect"),
        ({"sampler_config": {"loss_target_type": "HA_STYLE"}}, "loss_target_type: expected one of"),
        ({"sampler_config": {"schedule_type": "RND"}}, "schedule_type: expected one of COSINE"),
        ({"sampler_config": {"rescale_schedule": 2}}, "rescale_schedule: more than 1"),
        ({"sampler_config": {"rescale_signal": 2.0}}, "rescale_signal: 2.0 has no effect"),
        (
            {"sampler_config": {"num_diffusion_steps": 10**9}},
            "sampler_config.num_diffusion_steps: expected 2 to 100000",
        ),
        ({"sampler_config": {"beta_start": float("nan")}}, "beta_start: expected a finite number"),
        ({"sampler_config": {"reproject_signal": True}}, "reproject_signal: true has no effect"),
        ({"use_dbl_loss": True}, "unknown key 'use_dbl_loss'"),
    ],
)
def test_diffusion_settings_that_cannot_run_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        diffusion_config_from_apple({**NOISE, **changes}, 2)


# --- YAML -----------------------------------------------------------------------------------

INNERMOST = """
num_resnets_per_resolution: [2, 2, 2]
attention_levels: [1, 2]
num_attention_layers: [0, 1, 5]
conditioning_feature_dim: -1
conditioning_feature_proj_dim: 2048
masked_cross_attention: 0
resolution_channels: [256, 512, 768]
skip_mid_blocks: False
micro_conditioning: 'scale:64'
resnet_config: {use_attention_ffn: True, num_groups_norm: 32, num_channels: -1}
"""


def outer(channels: str, scale: int, skip_normalization: bool, proj: int, inner: str) -> str:
    indented = "".join(f"  {line}\n" for line in inner.strip().splitlines())
    return f"""
num_resnets_per_resolution: [2, 2, 1]
attention_levels: []
num_attention_layers: [0, 0, 0]
conditioning_feature_proj_dim: {proj}
resolution_channels: {channels}
temporal_dim: 1024
micro_conditioning: scale:{scale}
skip_normalization: {skip_normalization}
initialize_inner_with_pretrained: None
inner_config:
  nesting: true
{indented}"""


def document(model: str, unet: str, side: int, noise: str, rest: str = "") -> str:
    indented = "".join(f"  {line}\n" for line in unet.strip().splitlines())
    return f"""
model: {model}
vision_model: {model}
text_model: google/flan-t5-xl
unet_config:
{indented}
diffusion_config:
  sampler_config:
    num_diffusion_steps: 1000
    prediction_type: V_PREDICTION
    loss_target_type: DDPM
    schedule_type: DEEPFLOYD
{noise}
  use_vdm_loss_weights: false
  use_double_loss: true
  no_use_residual: true
reader_config: {{image_size: {side}, max_token_length: 128, max_caption_length: 512}}
lr: 5.0e-05
{rest}
"""


MIDDLE = "[64, 128, 256]"
DOCUMENTS = {
    "mdm64": document("unet", INNERMOST, 64, "")
    .replace("  use_double_loss: true\n", "")
    .replace("  no_use_residual: true\n", ""),
    "mdm256": document(
        "nested_unet",
        outer(MIDDLE, 256, True, -1, INNERMOST),
        256,
        "    schedule_shifted: true\n    rescale_signal: 1",
    ),
    "mdm1024": document(
        "nested2_unet",
        outer("[32, 32, 64]", 1024, True, 2048, outer(MIDDLE, 256, False, 2048, INNERMOST)),
        1024,
        "    schedule_shifted: true\n    schedule_shifted_power: 2\n    rescale_signal: 1",
    ),
}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "model.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_published_layouts_give_the_presets(name: str, tmp_path: Path) -> None:
    read = read_apple_yaml(write(tmp_path, DOCUMENTS[name]))
    assert read.config == as_apple_reads(preset(name))
    assert read.notices == ("Settings of the original's programs are not used: lr.",)


@pytest.mark.skipif("MDM_REFERENCE" not in os.environ, reason="needs a checkout of apple/ml-mdm")
@pytest.mark.parametrize(
    ("name", "notices"),
    [
        ("64", ["diffusion_config: appears twice"]),
        ("256", ["mixed_ratio: not used, because at the top level", "'sample-dir'"]),
        ("1024", ["multi_res_weights: not used", "initialize_inner_with_pretrained: '8rwvbg85tt'"]),
    ],
)
def test_the_published_files_give_the_presets(name: str, notices: list[str]) -> None:
    configs = Path(os.environ["MDM_REFERENCE"]) / "ml-mdm-matryoshka" / "configs" / "models"
    read = read_apple_yaml(configs / f"cc12m_{name}x{name}.yaml")
    assert read.config == as_apple_reads(preset(f"mdm{name}"))
    for sentence in notices:
        assert any(sentence in notice for notice in read.notices)


def test_everything_left_unused_is_reported_by_name(tmp_path: Path) -> None:
    extra = "mixed_ratio: '2:1'\nbatch_size: 2\nbatch_size: 4\nsample-dir: x\nwhatever: 1"
    text = DOCUMENTS["mdm256"].replace("lr: 5.0e-05", extra)
    read = read_apple_yaml(write(tmp_path, text))
    line = 1 + text[: text.rindex("batch_size")].count("\n")
    assert read.config == as_apple_reads(preset("mdm256"))
    assert read.notices == (
        f"batch_size: appears twice (line {line}); the last one counts.",
        "Settings of the original's programs are not used: batch_size.",
        "mixed_ratio: not used, because at the top level the original ignores it too; it belongs "
        "in diffusion_config.",
        "top level: unknown key 'sample-dir' is not used. Did you mean 'sample_dir'?",
        "top level: unknown key 'whatever' is not used.",
    )


def test_the_last_of_two_sections_counts_and_the_first_is_not_checked(tmp_path: Path) -> None:
    first = "diffusion_config: {sampler_config: {loss_target_type: HA_STYLE}}\n"
    read = read_apple_yaml(write(tmp_path, first + DOCUMENTS["mdm64"]))
    assert read.config == as_apple_reads(preset("mdm64"))
    assert any(n.startswith("diffusion_config: appears twice") for n in read.notices)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a list of 'key: value' settings"),
        ("- 1\n- 2\n", "expected a list of 'key: value' settings"),
        ("a: [1\n", "not plain YAML"),
        ("\ta: 1", "not plain YAML"),
        (b"\xff\xfe\x00", "expected UTF-8 text"),
        (b"a: \x00", "not plain YAML"),
        ("a: !!python/object/apply:os.system ['touch canary']", "not plain YAML"),
        ("a: !!python/name:os.system", "not plain YAML"),
        (BOMB, r"aliases \(\*name\) are not supported"),
        ("a: &a [*a]", r"aliases \(\*name\) are not supported"),
        ("a: " + "[" * 200 + "]" * 200, "at most 24 levels of nesting"),
        ("a: " + "{a: " * 200, "at most 24 levels of nesting"),
        ("#" * 300_000, "at most 256 KiB"),
        ("? [1, 2]\n: 3\n", "expected a name as the key"),
        ("a: 2001-99-99\n", "cannot be read"),
        ("lr: 1\n", "key 'unet_config' is missing"),
        ("unet_config: 3\n", "unet_config: expected a group of fields"),
        ("unet_config: {inner_config: 3}\n", "inner_config: expected a group of fields"),
        (DOCUMENTS["mdm64"].replace("flan-t5-xl", "flan-t5-x"), "Did you mean 'google/flan-t5-xl'"),
        (DOCUMENTS["mdm64"].replace("model: unet", "model: nested_unet"), "has 2 levels, but"),
        (DOCUMENTS["mdm64"].replace("model: unet", "model: vit"), "model: 'vit' is not known"),
        (
            DOCUMENTS["mdm64"].replace("image_size: 64", "image_size: 66"),
            "reader_config.image_size: expected a multiple",
        ),
        (
            DOCUMENTS["mdm64"].replace("image_size: 64", "x: 64"),
            "expected the side of the pictures",
        ),
        (
            DOCUMENTS["mdm64"] + "categorical_conditioning: 1\n",
            "categorical_conditioning: 1 is not",
        ),
        (
            DOCUMENTS["mdm64"].replace("diffusion_config", "diffusion"),
            "'diffusion_config' is missing",
        ),
    ],
)
def test_files_that_are_no_configuration_are_refused_in_one_sentence(
    text: str | bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        read_apple_yaml(write(tmp_path, text))
    assert str(caught.value).count("\n") == 0
    assert not (tmp_path / "canary").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        read_apple_yaml(tmp_path / "absent.yaml")


def test_dumping_a_layout_with_another_yaml_writer_changes_nothing(tmp_path: Path) -> None:
    data = yaml.safe_load(DOCUMENTS["mdm1024"])
    path = write(tmp_path, yaml.safe_dump(data, default_flow_style=True))
    assert read_apple_yaml(path).config == as_apple_reads(preset("mdm1024"))
