"""How a report shows a share of hits."""

from __future__ import annotations

from typing import Any

from mdm_apple.evaluation.share import Share


def share_values(share: Share) -> dict[str, Any]:
    """A share as JSON."""
    low, high = share.interval
    return {
        "share": share.share,
        "low": low,
        "high": high,
        "hits": share.hits,
        "count": share.count,
        "chance": share.chance,
    }


def share_line(share: Share) -> str:
    """A share in per cent, with its interval and chance."""
    percent, low, high, chance = (100 * n for n in (share.share, *share.interval, share.chance))
    return f"{percent:5.1f} % ({low:.1f} to {high:.1f}; {chance:.1f})"
