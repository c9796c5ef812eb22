"""`python -m benchmarks.memory ours|other PRESET`: a process that runs one network once.

Prints its peak memory in bytes, including the weights.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.networks import inputs, other_network
from mdm_apple.config.presets import preset
from mdm_apple.conversion.footprint import peak_bytes
from mdm_apple.torch.nested_unet import build_unet
from mdm_apple.torch.runtime import prepare


def main(side: str, preset_name: str) -> None:
    model = preset(preset_name)
    x, text, mask = inputs(model)
    when = torch.tensor([500])
    with torch.inference_mode():
        if side == "other":
            _, net, run = other_network(model.model)
            run(net.eval(), x, when, text, mask)
        else:
            ours = prepare(build_unet(model.model), torch.device("cpu"), packed=True)
            ours([level.to(memory_format=torch.channels_last) for level in x], when, text, mask)
    print(peak_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
