"""The training loop of a nested model in one file: 8 px inside 16 px, eight emoji, two minutes.

`mdm train` does this with checkpoints, exact resume, several processes and MLX. Here is only what
makes the model learn:

1. A batch of pictures becomes a pyramid: each picture at 16 px and, average-pooled, at 8 px.
2. Both levels get their own noise, for one timestep t that they share.
3. One network predicts v at both levels at once; the small UNet runs inside the large one.
4. The loss adds the squared errors of the levels.
5. Averaged weights make the samples.

    python examples/train_tiny.py --out tiny
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mdm_apple.config.model import DiffusionConfig, ScheduleConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.data.dataset import with_captions
from mdm_apple.data.open import open_dataset
from mdm_apple.diffusion.loss import nested_loss
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.diffusion.schedule import Schedule, build_schedule
from mdm_apple.sampling.pictures import enlarge, save_png, tile, to_pixels
from mdm_apple.sampling.walk import SamplerConfig, sample
from mdm_apple.torch.nested_unet import build_unet
from mdm_apple.torch.ops import TorchOps
from mdm_apple.torch.unet import UNet

CAPTIONS = ("red heart", "green apple", "lemon", "panda", "frog", "star", "cookie", "stop sign")
SIDE, TEXT_DIM = 16, 64
SMALL = UNetConfig(
    channels=(32, 64), num_resnets=(1, 1), num_attention_layers=(0, 1), text_dim=TEXT_DIM
)
LARGE = UNetConfig(
    channels=(32, 64),
    num_resnets=(1, 1),
    num_attention_layers=(0, 0),
    mid_blocks=False,
    temb_dim=4 * SMALL.channels[0],
    inner=SMALL,  # this is the nest
)
DIFFUSION = DiffusionConfig(
    # pooling by 2 divides the noise variance by 4, so the large level needs more noise
    ScheduleConfig("cosine", shift_power=2.0),
    loss_weighting="snr_plus_one",
    high_noise_share=0.3,
)


class Words(nn.Module):
    """The smallest text encoder there is: one learned vector for each caption."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(len(CAPTIONS), TEXT_DIM)

    def forward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 1, TEXT_DIM) and their mask (B, 1)."""
        return self.table(indices)[:, None], torch.ones(len(indices), 1)


def load_pictures() -> Tensor:
    """(N, 3, SIDE, SIDE) in [-1, 1], in the order of CAPTIONS."""
    dataset = with_captions(open_dataset("twemoji", SIDE), CAPTIONS)
    stack = np.stack([dataset.item(i).image for i in range(len(dataset))])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_times(rows: int, steps: int) -> Tensor:
    """Timesteps from 1 to `steps`; high noise more often, since there the caption decides."""
    low = torch.where(torch.rand(rows) < 0.3, int(0.85 * steps), 1)
    return (low + torch.rand(rows) * (steps + 1 - low)).long().clamp(max=steps)


def loss_of(net: UNet, words: Words, pictures: Tensor, indices: Tensor, tables: Tensor) -> Tensor:
    """The nested loss of one batch."""
    ops = TorchOps()
    x0 = build_pyramid(pictures[indices], LARGE, ops)
    eps = [torch.randn_like(level) for level in x0]
    t = draw_times(len(indices), tables.shape[1] - 1)
    alpha_bar = [table[t][:, None, None, None] for table in tables]
    features, mask = words(indices)

    def network(x_t: list[Tensor]) -> Sequence[Tensor]:
        return net(x_t, t - 1, features, mask)  # the network counts timesteps from 0

    parts = nested_loss(network, x0, eps, alpha_bar, DIFFUSION, LARGE.scales, ops)
    return parts.per_sample.mean()


def train(steps: int, batch_size: int, seed: int) -> tuple[UNet, Words, Schedule]:
    """Returns the averaged network, the words and the schedule."""
    torch.manual_seed(seed)
    pictures, schedule = load_pictures(), build_schedule(DIFFUSION.schedule, LARGE.scales)
    tables = torch.from_numpy(np.stack(schedule.tables)).float()
    net, words = build_unet(LARGE), Words()
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98)
    )
    parameters = [*net.parameters(), *words.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        indices = torch.randint(len(CAPTIONS), (batch_size,))
        loss = loss_of(net, words, pictures, indices, tables)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rates.step()
        average.update_parameters(net)
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    net.load_state_dict(average.module.state_dict())
    return net.eval(), words, schedule


@torch.no_grad()
def draw(net: UNet, words: Words, schedule: Schedule, seed: int) -> list[Tensor]:
    """A picture of every caption, (N, 3, side, side) per level, highest first."""
    features, mask = words(torch.arange(len(CAPTIONS)))
    noise = torch.Generator().manual_seed(seed)
    sides = [SIDE, SIDE // 2]

    def normals() -> list[Tensor]:
        return [torch.randn(len(CAPTIONS), 3, s, s, generator=noise) for s in sides]

    def denoise(x_t: list[Tensor], time: int) -> Sequence[Tensor]:
        return net(x_t, torch.full((len(CAPTIONS),), time), features, mask)

    sampler = SamplerConfig("dpmpp", num_steps=12, threshold="clip")
    steps = list(
        sample(denoise, normals(), normals, schedule, DIFFUSION, sampler, LARGE.scales, TorchOps())
    )
    return steps[-1].x_next


def main(out: Path, steps: int, batch_size: int, seed: int) -> None:
    net, words, schedule = train(steps, batch_size, seed)
    large, small = (to_pixels(level.numpy()) for level in draw(net, words, schedule, seed))
    shown = [*(enlarge(picture, SIDE) for picture in small), *large]
    out.mkdir(parents=True, exist_ok=True)
    save_png(out / "levels.png", tile(np.stack(shown), columns=len(CAPTIONS)))
    torch.save(net.state_dict(), out / "weights.pt")
    print(f"{out / 'levels.png'}: {', '.join(CAPTIONS)}; 8 px above, 16 px below")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("tiny"))
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--batch-size", type=int, default=16)
    arguments.add_argument("--seed", type=int, default=0)
    main(**vars(arguments.parse_args()))
