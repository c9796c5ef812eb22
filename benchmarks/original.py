"""Loads the networks of apple/ml-mdm from a checkout, to compare ours with.

Only its two network files are loaded, unchanged. Their imports other than torch and einops
(command-line configuration, downloads, summaries) are replaced by empty stand-ins, which run
nothing during a forward pass.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mdm_apple.config.network import UNetConfig
from mdm_apple.errors import MdmError

VARIABLE = "MDM_REFERENCE"


def reference_path() -> Path | None:
    """The checkout named by the environment variable MDM_REFERENCE, if any."""
    value = os.environ.get(VARIABLE)
    return Path(value) if value else None


def build_original(checkout: Path, config: UNetConfig) -> nn.Module:
    """The original network with the settings of one of ours; its state dict has the same keys."""
    unet, nested = _load(checkout)
    fields = _fields(config, unet, nested)
    kind = nested.NestedUNet if config.inner else unet.UNet
    fields.conditioning_feature_dim = config.innermost.text_dim or -1
    return kind(3, 3, fields)


def run_original(
    net: nn.Module, x_t: list[Tensor], times: Tensor, text: Tensor, mask: Tensor
) -> list[Tensor]:
    """One forward pass including the text path, as in the original pipeline."""
    x = x_t if len(x_t) > 1 else x_t[0]
    conditioning = net.forward_conditioning(text, mask)  # type: ignore[operator]
    out = net.forward_denoising(x, times, *conditioning)  # type: ignore[operator]
    return list(out) if isinstance(out, (list, tuple)) else [out]


def _load(checkout: Path) -> tuple[Any, Any]:
    roots = [p for p in checkout.rglob("ml_mdm") if (p / "models" / "unet.py").is_file()]
    if not roots:
        raise MdmError(
            f"{VARIABLE}: {checkout} holds no ml_mdm/models/unet.py; "
            "name a checkout of apple/ml-mdm."
        )
    root = roots[0]
    package = types.ModuleType("ml_mdm")
    package.__path__ = [str(root)]
    config = types.ModuleType("ml_mdm.config")
    for name in ("register_model", "register_model_config"):
        setattr(config, name, _keep)
    stand_ins = {
        "ml_mdm": package,
        "ml_mdm.config": config,
        "ml_mdm.s3_helpers": types.ModuleType("ml_mdm.s3_helpers"),
        "ml_mdm.utils": types.ModuleType("ml_mdm.utils"),
        "torchinfo": types.ModuleType("torchinfo"),
    }
    stand_ins["ml_mdm.utils"].fix_old_checkpoints = None  # type: ignore[attr-defined]
    stand_ins["torchinfo"].summary = None  # type: ignore[attr-defined]
    package.config = config  # type: ignore[attr-defined]
    package.s3_helpers = stand_ins["ml_mdm.s3_helpers"]  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    models = types.ModuleType("ml_mdm.models")
    models.__path__ = [str(root / "models")]
    sys.modules["ml_mdm.models"] = models
    return _import(root, "unet"), _import(root, "nested_unet")


def _import(root: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(
        f"ml_mdm.models.{name}", root / "models" / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _keep(*_: Any, **__: Any) -> Callable[[Any], Any]:
    return lambda decorated: decorated


def _fields(config: UNetConfig, unet: Any, nested: Any) -> Any:
    """Our settings under the original's names."""
    attended = [i for i, n in enumerate(config.num_attention_layers) if n]
    shared = {
        "num_resnets_per_resolution": list(config.num_resnets),
        "temporal_dim": config.temb_dim,
        "attention_levels": attended,
        "num_attention_layers": list(config.num_attention_layers),
        "conditioning_feature_proj_dim": config.innermost.text_proj_dim or -1,
        "num_lm_head_layers": config.num_text_head_layers,
        "masked_cross_attention": int(config.masked_cross_attention),
        "resolution_channels": list(config.channels),
        "skip_mid_blocks": not config.mid_blocks,
        "skip_cond_emb": config.inner is not None,
        "micro_conditioning": ",".join(f"{k}:{v:g}" for k, v in config.micro_conditions.items())
        or None,
        "resnet_config": unet.ResNetConfig(
            num_groups_norm=config.num_groups, use_attention_ffn=config.attention_ffn
        ),
    }
    if config.inner is None:
        return unet.UNetConfig(**shared)
    inner = _fields(config.inner, unet, nested)
    inner.nesting = True
    return nested.NestedUNetConfig(
        **shared, inner_config=inner, skip_normalization=not config.normalize_input
    )
