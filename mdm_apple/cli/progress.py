"""A progress bar for work that reports how much is done, and how much there is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

from mdm_apple.cli.output import Output


@contextmanager
def progress_bar(output: Output, unit: str, **looks: Any) -> Generator[Callable[[int, int], None]]:
    """A function of (done, total). The bar is drawn when it is first called, and closed in the end.

    So a refusal before the work stands alone, and one in its middle below the bar.
    """
    bar: Any = None
    with ExitStack() as closing:

        def progress(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = closing.enter_context(
                    tqdm(total=total, unit=unit, disable=output.quiet, **looks)
                )
            bar.total = total
            bar.update(done - bar.n)

        yield progress
