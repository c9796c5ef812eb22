"""Our T5 encoder against the one of `transformers`, with random weights and both feed-forwards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdm_apple.config.network import T5Config
from mdm_apple.config.shapes import encoder_shapes
from mdm_apple.text.encoder_folder import HubError, read_encoder_folder, t5_config_from_hf
from mdm_apple.text.feature_cache import FeatureCache, FeatureKey, embed_captions
from mdm_apple.text.t5_positions import relative_buckets
from mdm_apple.text.tokenizer import TextError, TextFeatures, TokenBatch, train_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import T5Config as HFConfig  # noqa: E402
from transformers import T5EncoderModel, T5ForConditionalGeneration  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

from mdm_apple.torch.t5 import (  # noqa: E402
    T5Encoder,
    encoder_from_state,
    load_hf_encoder,
    text_features,
)

FORWARD = 1e-5  # of the largest value, fp32 on both sides
KINDS = ("relu", "gated-gelu")


def hf_config(kind: str = "gated-gelu", **changes: Any) -> HFConfig:
    sizes = {"vocab_size": 50, "d_model": 24, "d_kv": 5, "d_ff": 36, "num_layers": 3}
    return HFConfig(**{**sizes, "num_heads": 4, "feed_forward_proj": kind, **changes})


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight random, norms and position table included, large enough to matter."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        wide = "shared" in name or "relative" in name
        weight.data = noise if wide else noise * weight.shape[-1] ** -0.5
        if name.endswith("layer_norm.weight"):
            weight.data = 1 + 0.3 * noise
    return model.eval()


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, safe_serialization=True, **options)
    return folder


def inputs(length: int = 19) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows: full, half and a single token."""
    ids = torch.randint(3, 50, (3, length), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(3, length)
    for row, tokens in enumerate((length, length // 2, 1)):
        ids[row, tokens - 1] = 1
        ids[row, tokens:] = 0
        mask[row, tokens:] = 0
    return ids, mask


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).abs().max() / expected.abs().max())


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, and ours loaded from what theirs saved."""
    theirs = randomized(T5EncoderModel(hf_config(request.param)))
    folder = saved(theirs, tmp_path_factory.mktemp("hf"))
    config, state = load_hf_encoder(folder)
    assert config.feed_forward == request.param
    return theirs, encoder_from_state(config, state)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 19, 300])
def test_features_equal_those_of_transformers(pair: Any, length: int) -> None:
    theirs, ours = pair
    ids, mask = inputs(length)
    expected = theirs(ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
    got = ours(ids, mask)
    assert got.shape == expected.shape
    assert error(got, expected) < FORWARD


@torch.no_grad()
def test_any_weight_changed_a_little_shows(pair: Any) -> None:
    """The twin of the test above: every single tensor, moved by a hundredth, is noticed."""
    theirs, ours = pair
    ids, mask = inputs()
    expected = theirs(ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
    generator = torch.Generator().manual_seed(3)
    for name, weight in ours.named_parameters():
        kept = weight.data
        weight.data = kept + 1e-2 * torch.randn(kept.shape, generator=generator)
        assert error(ours(ids, mask), expected) > 2 * FORWARD, name
        weight.data = kept
    assert error(ours(ids, mask), expected) < FORWARD


@torch.no_grad()
def test_padding_does_not_reach_the_tokens(pair: Any) -> None:
    _, ours = pair
    ids, mask = inputs(20)
    alone = ours(ids[1:2, :10], mask[1:2, :10])
    assert error(ours(ids, mask)[1:2, :10], alone) < FORWARD
    assert not ours(ids, mask)[1:2, 10:].any()
    other = torch.where(mask == 0, 7, ids)
    assert torch.equal(ours(other, mask), ours(ids, mask))


@torch.no_grad()
def test_a_row_without_any_token_gives_zeros(pair: Any) -> None:
    _, ours = pair
    assert not ours(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)).any()


@pytest.mark.parametrize(("length", "buckets", "distance"), [(700, 32, 128), (200, 8, 20)])
def test_relative_buckets_equal_those_of_transformers(
    length: int, buckets: int, distance: int
) -> None:
    place = torch.arange(length)
    expected = T5Attention._relative_position_bucket(
        place[None] - place[:, None], True, buckets, distance
    )
    np.testing.assert_array_equal(relative_buckets(length, buckets, distance), expected.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_those_of_the_state_dict(kind: Any) -> None:
    config = T5Config(50, 24, 5, 36, 3, 4, feed_forward=kind)
    state = T5Encoder(config).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == encoder_shapes(config)


@torch.no_grad()
def test_training_starts_from_activations_near_one() -> None:
    torch.manual_seed(0)
    encoder = T5Encoder(T5Config(200, 128, 32, 320, 2, 4)).eval()
    ids = torch.randint(2, 200, (8, 16))
    features = encoder(ids, torch.ones(8, 16))
    assert 0.9 < float(features.std()) < 1.1
    layer = encoder.encoder.block[1].layer[0].SelfAttention
    logits = layer.q(features) @ layer.k(features).transpose(1, 2)
    assert 0.5 < float(logits.std()) / 4**0.5 < 2  # four heads of unit variance, added up


def test_gradients_reach_every_weight_and_agree_with_transformers(pair: Any) -> None:
    theirs, ours = pair
    ids, mask = inputs()
    target = torch.randn(3, 19, 24, generator=torch.Generator().manual_seed(4))
    encoder = encoder_from_state(ours.config, ours.state_dict()).requires_grad_(True)
    (encoder(ids, mask) * target).sum().backward()
    expected = theirs(ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
    names, weights = zip(*theirs.named_parameters(), strict=True)
    gradients = dict(
        zip(names, torch.autograd.grad((expected * target).sum(), weights), strict=True)
    )
    for name, weight in encoder.named_parameters():
        assert error(weight.grad, gradients[name]) < 1e-4, name


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = T5Encoder(T5Config(50, 24, 5, 36, 2, 4, dropout=0.2))
    ids, mask = inputs()
    assert not torch.equal(encoder(ids, mask), encoder(ids, mask))
    encoder.eval()
    assert torch.equal(encoder(ids, mask), encoder(ids, mask))


@torch.no_grad()
def test_an_encoder_loaded_in_bf16_stays_near_and_keeps_large_sums(folder: Path) -> None:
    """Feed-forward outputs of 10^5 and more occur in the large T5s; the sum over blocks is fp32."""
    wo = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    ids, mask = inputs()
    for factor in (1, 1e6):
        rewrite(folder, lambda state, by=factor: state[wo].mul_(by))
        exact = encoder_from_state(*load_hf_encoder(folder))
        reduced = encoder_from_state(*load_hf_encoder(folder, torch.bfloat16))
        got = reduced(ids, mask)
        assert got.dtype == torch.bfloat16
        assert error(got, exact(ids, mask)) < 5e-2, factor


@torch.no_grad()
def test_bf16_autocast_stays_near(pair: Any) -> None:
    _, ours = pair
    ids, mask = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(ids, mask)
    assert error(got, ours(ids, mask)) < 5e-2


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_whole_t5_in_shards_loads_without_its_decoder(tmp_path: Path, kind: str) -> None:
    theirs = randomized(T5ForConditionalGeneration(hf_config(kind, d_ff=400)))
    folder = saved(theirs, tmp_path, max_shard_size="100KB")
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) > 2
    config, state = load_hf_encoder(folder)
    assert list(state) == list(encoder_shapes(config))
    ids, mask = inputs()
    expected = theirs.encoder(ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
    assert error(encoder_from_state(config, state)(ids, mask), expected) < FORWARD

    used = set(read_encoder_folder(folder).weights.values())
    unused = [shard for shard in shards if shard not in used]
    assert unused  # those with decoder weights alone need not be there
    for shard in unused:
        shard.unlink()
    assert list(load_hf_encoder(folder)[1]) == list(state)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(randomized(T5EncoderModel(hf_config())), tmp_path)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_the_token_table_is_found_under_its_second_name(folder: Path) -> None:
    expected = load_hf_encoder(folder)[1]
    second = "encoder.embed_tokens.weight"
    rewrite(folder, lambda s: s.update({second: s["shared.weight"].clone()}))
    both = load_hf_encoder(folder)[1]
    rewrite(folder, lambda s: s.pop("shared.weight"))
    only = load_hf_encoder(folder)[1]
    for state in (both, only):
        assert list(state) == list(expected)
        assert all(torch.equal(state[k], expected[k]) for k in expected)


def test_weights_are_cast_when_asked(folder: Path) -> None:
    rewrite(folder, lambda s: s.update({k: v.half() for k, v in s.items()}))
    assert {t.dtype for t in load_hf_encoder(folder)[1].values()} == {torch.float16}
    as_float = load_hf_encoder(folder, torch.float32)[1]
    assert {t.dtype for t in as_float.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.final_layer_norm.weight"), "final_layer_norm.weight is missing"),
        (lambda s: s.update({"encoder.extra": torch.ones(1)}), "encoder.extra is not part of"),
        (lambda s: s.update({"shared.weight": torch.ones(50, 23)}), r"expected shape \(50, 24\)"),
        (
            lambda s: s.update({"shared.weight": torch.ones(50, 24, dtype=torch.int8)}),
            "got .* in I8",
        ),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    folder: Path, change: Any, message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(HubError, match=message):
        load_hf_encoder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mt5"}, "expected model_type t5, got 'mt5'"),
        ({"feed_forward_proj": "gated-silu"}, "expected relu or gated-gelu, got 'gated-silu'"),
        ({"num_layers": 10**9}, "num_layers: expected 1 to 256, got 1000000000"),
        ({"d_model": None}, "d_model: expected 1 to 16384, got None"),
        ({"d_kv": 64.0}, "d_kv: expected 1 to 1024, got 64.0"),
        ({"num_heads": True}, "num_heads: expected 1 to 1024, got True"),
        ({"relative_attention_num_buckets": 6}, "relative_buckets: expected a multiple of 4"),
        ({"relative_attention_max_distance": 8}, "less than four times the largest distance 8"),
        ({"layer_norm_epsilon": 0.0}, "norm_eps: expected between 0 and 1"),
    ],
)
def test_configurations_of_other_networks_are_refused(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    data = json.loads((folder / "config.json").read_text())
    assert t5_config_from_hf(data).d_model == 24
    with pytest.raises(HubError, match=message):
        t5_config_from_hf({**data, **change})


def test_the_published_configuration_is_that_of_the_presets() -> None:
    """The fields of google/flan-t5-xl's config.json that matter; it predates the last one below."""
    from mdm_apple.config.presets import FLAN_T5

    published = {
        "model_type": "t5", "d_ff": 5120, "d_kv": 64, "d_model": 2048, "dropout_rate": 0.1,
        "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06,
        "num_decoder_layers": 24, "num_heads": 32, "num_layers": 24, "vocab_size": 32128,
        "relative_attention_num_buckets": 32,
    }  # fmt: skip
    assert t5_config_from_hf(published) == FLAN_T5["google/flan-t5-xl"]
    assert sum(map(math.prod, encoder_shapes(FLAN_T5["google/flan-t5-xl"]).values())) == 1223527424
    later = {**published, "relative_attention_max_distance": 128}
    assert t5_config_from_hf(later) == FLAN_T5["google/flan-t5-xl"]


def test_features_from_tokens_survive_the_cache(tmp_path: Path) -> None:
    """Captions to tokens to features to a file and back, with a trained tokenizer."""
    captions = ["red heart", "grinning face with big eyes", "flag", "cat face"]
    tokenizer = train_tokenizer(captions, 100, tmp_path / "t.model", lowercase=True)
    torch.manual_seed(0)
    encoder = T5Encoder(T5Config(100, 32, 8, 64, 2, 4)).eval()

    @torch.no_grad()
    def encode(batch: list[str]) -> TextFeatures[np.ndarray]:
        features = text_features(encoder, tokenizer.encode(batch, 16))
        return TextFeatures(features.values.numpy(), features.mask.numpy())

    key = FeatureKey("e", tokenizer.sha256, True, 16, 32)
    embed_captions(captions, encode, tmp_path / "f", key, batch_size=2)
    got, expected = (
        FeatureCache(tmp_path / "f", key).lookup([*captions, ""]),
        encode([*captions, ""]),
    )
    np.testing.assert_array_equal(got.mask, expected.mask)
    np.testing.assert_allclose(got.values, expected.values, rtol=2**-8, atol=1e-5)


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    encoder = T5Encoder(T5Config(10, 8, 4, 8, 1, 2))
    tokens = TokenBatch(np.array([[9, 10, 1]], np.int32), np.ones((1, 3), np.float32))
    with pytest.raises(TextError, match="id 10 is beyond the encoder's 10 pieces"):
        text_features(encoder, tokens)
