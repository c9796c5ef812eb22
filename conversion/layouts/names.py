"""The names by which packages are wired, and those of the tables that a bundle carries.

A tensor name means the same in every package of a bundle: what one package puts out under a name
enters every later one that takes that name. The host provides the rest (images, time embeddings,
tokens). Every name of a level ends in its side in pixels.
"""

from __future__ import annotations

TOKEN_IDS = "token_ids"  # (1, L) int32
TEXT_MASK = "text_mask"  # (1, L), 1 for tokens, 0 for padding
TEXT_SEEN = "text_seen"  # (1, L), 0 for padding that the network must not see
TEXT_FEATURES = "text_features"  # (1, L, text_dim)
POOLED = "pooled"  # (1, D), which the host adds to the rows of the time tables
ATTENTION_MASK = "attention_mask"  # see mask_shape; 0 where attended and MASKED elsewhere
BASE_TABLE = "alpha_bar"  # unshifted, (T + 1,)


def image_name(side: int) -> str:
    """Noisy image of a level, (1, 3, side, side)."""
    return f"x_{side}"


def temb_name(side: int) -> str:
    """Finished embedding of a level, (1, D): its row of the time table plus the pooled text."""
    return f"temb_{side}"


def prediction_name(side: int) -> str:
    return f"prediction_{side}"


def features_name(side: int) -> str:
    """What the level above adds to a level's own features, (1, C, side, side); zero without one."""
    return f"features_{side}"


def hidden_name(side: int) -> str:
    """Last hidden state of a level, (1, C, side, side), for the level above."""
    return f"hidden_{side}"


def skip_name(side: int, index: int) -> str:
    """What the way down of a level keeps for its way up."""
    return f"skip_{side}_{index}"


def keys_values_names(side: int, index: int) -> tuple[str, str]:
    """Cross-attention keys and values of one layer.

    (1, heads, L, head width) each; for the Neural Engine (1, L, 1, C) and (1, C, 1, L).
    """
    return f"keys_{side}_{index}", f"values_{side}_{index}"


def alpha_bar_name(side: int) -> str:
    return f"alpha_bar_{side}"


def time_name(side: int) -> str:
    return f"time_{side}"


def target_time_name(side: int) -> str:
    return f"target_time_{side}"


def guidance_name(side: int) -> str:
    return f"guidance_{side}"
