"""The PyTorch network: what concerns its modules, memory and number types."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backends import TorchBackend
from small import around, noisy_images, plain, random_state, random_text, video
from torch import Tensor, nn

from mdm_apple.config.network import Student, UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.shapes import state_shapes
from mdm_apple.torch.cpu.packed import PackedConv2d, PackedPointwise
from mdm_apple.torch.nested_unet import build_on_meta, build_unet, fold, unfold
from mdm_apple.torch.runtime import DTYPES, prepare
from mdm_apple.torch.unet import UNet

EVERYTHING = video(
    plain(text_proj_dim=32, num_text_head_layers=1),
    num_attention_layers=(0, 1, 0),
    attention_ffn=True,
    temporal_positional_encoding=True,
    normalize_input=True,
)


def shapes_of(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def random_net(config: UNetConfig) -> UNet:
    return TorchBackend().network(config, random_state(config))


def tensors(config: UNetConfig, rows: int = 2) -> tuple[list[Tensor], Tensor, Tensor]:
    """x_t, times, text features."""
    images = [torch.from_numpy(x) for x in noisy_images(config, rows, side=8)]
    return images, torch.tensor([20, 800])[:rows], torch.from_numpy(random_text(rows))


# --- weights ----------------------------------------------------------------------------------


def test_a_network_on_meta_takes_no_memory() -> None:
    assert {p.device.type for p in build_on_meta(preset("mdm1024").model).parameters()} == {"meta"}


@pytest.mark.parametrize(
    "config", [EVERYTHING, around(plain(student=Student()), student=Student())]
)
def test_shapes_known_without_a_framework_are_those_of_torch(config: UNetConfig) -> None:
    assert state_shapes(config) == shapes_of(build_on_meta(config))


@pytest.mark.parametrize(
    "student", [Student(True, True), Student(True, False), Student(False, True)]
)
def test_a_student_adds_zeroed_embeddings_to_every_level_and_changes_no_other_key(
    student: Student,
) -> None:
    teacher = around(plain())
    config = around(plain(student=student), student=student)
    torch.manual_seed(0)
    state = build_unet(config).state_dict()
    new = {k: v for k, v in state.items() if "temb_target_" in k or "temb_guidance_" in k}
    assert {k: tuple(v.shape) for k, v in state.items() if k not in new} == state_shapes(teacher)
    kinds = [
        name
        for name, wanted in (("target", student.target_time), ("guidance", student.guidance))
        if wanted
    ]
    assert set(new) == {
        f"{level}temb_{kind}_layer{i}.{part}"
        for level in ("", "inner_unet.")
        for kind in kinds
        for i in (1, 2)
        for part in ("weight", "bias")
    }
    assert not any(value.any() for key, value in new.items() if "layer2" in key)


def test_a_fresh_student_predicts_what_its_teacher_does_whatever_its_extra_inputs() -> None:
    student = Student()
    teacher = random_net(around(plain()))
    config = around(plain(student=student), student=student)
    net = build_unet(config).eval()
    net.load_state_dict(teacher.state_dict(), strict=False)
    x_t, times, text = tensors(config)
    extra = net.embed(times, None, torch.tensor([3, 700]), torch.tensor([1.0, 8.0]))
    for a, b in zip(
        net.denoise(x_t, extra, net.condition(text)), teacher(x_t, times, text), strict=True
    ):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_extra_inputs_of_a_trained_student_reach_every_level() -> None:
    config = around(plain(student=Student()), student=Student())
    net = random_net(config)
    times = torch.tensor([800])
    plain_embedding = net.embed(times)
    for extra in ((torch.tensor([3]), None), (None, torch.tensor([8.0]))):
        for a, b in zip(plain_embedding, net.embed(times, None, *extra), strict=True):
            assert not torch.allclose(a, b)


def test_every_norm_has_the_published_epsilon() -> None:
    norms = [
        m for m in random_net(EVERYTHING).modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)
    ]
    assert {type(m) for m in norms} == {nn.GroupNorm, nn.LayerNorm}
    assert {m.eps for m in norms} == {1e-5}


def test_a_frozen_inner_level_learns_nothing_and_the_outer_one_everything() -> None:
    net = build_unet(around(plain(), freeze_inner=True))
    learning = {
        name.startswith("inner_unet.") for name, p in net.named_parameters() if p.requires_grad
    }
    frozen = {
        name.startswith("inner_unet.") for name, p in net.named_parameters() if not p.requires_grad
    }
    assert (learning, frozen) == ({False}, {True})


# --- computation ------------------------------------------------------------------------------


def test_attention_comes_before_temporal_attention() -> None:
    net = random_net(EVERYTHING)
    block = net.down_blocks[1]
    samples, frames = 2, 4
    x, temb = torch.randn(samples * frames, 32, 4, 4), torch.randn(samples, 32)
    text = block.keys_values(torch.randn(samples, 5, 32), None)
    after_resnet = block.resnets[0](x, temb)
    attended = block.attn[0](after_resnet, text[0], None)
    wanted = block.t_attn[0](attended, samples)
    torch.testing.assert_close(block.layer(0, x, temb, text, None), wanted)
    swapped = block.attn[0](block.t_attn[0](after_resnet, samples), text[0], None)
    assert not torch.allclose(swapped, wanted, atol=1e-2)


def test_folding_frames_into_a_square_is_undone_by_unfolding() -> None:
    video_frames = torch.randn(2, 3, 12, 12)
    frames = unfold(video_frames, 3)
    assert frames.shape == (18, 3, 4, 4)
    torch.testing.assert_close(frames[9 + 5], video_frames[1, :, 4:8, 8:12])  # row by row
    torch.testing.assert_close(fold(frames, 3), video_frames)


@pytest.mark.parametrize(
    "config", [plain(dropout=0.2), around(plain(), num_attention_layers=(0, 1)), EVERYTHING]
)
def test_checkpointing_gives_the_same_gradients(config: UNetConfig) -> None:
    net = random_net(config).train()
    x_t, times, text = tensors(config)

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        for level in net.level_modules():
            level.checkpointing = checkpointing
        net.zero_grad()
        torch.manual_seed(0)  # dropout
        sum((out**2).sum() for out in net(x_t, times, text)).backward()  # type: ignore[union-attr]
        return {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}

    kept, recomputed = gradients(False), gradients(True)
    assert set(kept) == set(recomputed)
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=0, msg=name)


def decibel(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The worst signal-to-noise ratio of the levels."""
    return min(
        10 * float(np.log10(float((b.double() ** 2).sum() / ((a - b).double() ** 2).sum())))
        for a, b in zip(got, wanted, strict=True)
    )


@pytest.mark.parametrize(
    "config",
    [plain(text_proj_dim=32), around(around(plain(), normalize_input=True)), EVERYTHING],
    ids=["plain", "three", "everything"],
)
def test_bfloat16_keeps_35_decibel(config: UNetConfig) -> None:
    x_t, times, text = tensors(config)
    with torch.inference_mode():
        exact = random_net(config)(x_t, times, text)
        reduced = prepare(random_net(config), torch.device("cpu"), "bf16")(x_t, times, text)
    assert {out.dtype for out in reduced} == {torch.float32}
    assert 35 <= decibel(reduced, exact) < 80  # it is reduced, after all


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_embeddings_and_norms_stay_fp32_in_reduced_precision(precision: str) -> None:
    net = prepare(random_net(EVERYTHING), torch.device("cpu"), precision)  # type: ignore[arg-type]
    kept = ("temb_", "cond_layers", "cond_emb", "norm", "lm_", ".ffn.0.", ".main.0.", "freqs")
    for name, parameter in net.named_parameters():
        wanted = torch.float32 if any(part in f".{name}" for part in kept) else DTYPES[precision]  # type: ignore[index]
        assert parameter.dtype == wanted, name
    embeddings = net.embed(torch.tensor([20, 800]))
    assert {temb.dtype for temb in embeddings} == {torch.float32}


def test_one_row_of_embeddings_serves_a_whole_batch() -> None:
    config = around(plain())
    net = random_net(config)
    x_t, _, text = tensors(config)
    one = [temb.expand(2, -1) for temb in net.embed(torch.tensor([999]))]
    direct = net(x_t, torch.tensor([999, 999]), text)
    for a, b in zip(net.denoise(x_t, one, net.condition(text)), direct, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_packed_weights_give_the_same_prediction() -> None:
    config = around(plain(attention_ffn=True), channels=(32, 64))
    backend = TorchBackend()
    plain_net = prepare(backend.network(config, random_state(config)), torch.device("cpu"))
    packed_net = prepare(
        backend.network(config, random_state(config)), torch.device("cpu"), packed=True
    )
    assert any(isinstance(m, PackedConv2d) for m in packed_net.modules())
    assert any(isinstance(m, PackedPointwise) for m in packed_net.modules())
    text, mask = (
        torch.from_numpy(random_text(2)),
        torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    )
    images = [torch.from_numpy(level) for level in noisy_images(config, 2, 8)]
    times = torch.tensor([3, 700])
    for batch in (2, 1):  # packed at the first call, for its shape; another one must work as well
        x = [level[:batch].to(memory_format=torch.channels_last) for level in images]
        with torch.inference_mode():
            wanted = plain_net(x, times[:batch], text[:batch], mask[:batch])
            got = packed_net(x, times[:batch], text[:batch], mask[:batch])
        for a, b in zip(wanted, got, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(a.abs().max()))
