"""The training loop of both backends: steps, metrics, validation, saves, sample grids.

Input: a `Learner` (torch or MLX), batches, a folder. Output: a model folder that can be sampled,
converted, and resumed bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event

from tqdm import tqdm

from mdm_apple.errors import MdmError
from mdm_apple.training.learner import Learner, LostProcessError, Rows, Snapshot
from mdm_apple.training.metrics import open_log
from mdm_apple.training.settings import TrainConfig, learning_rate

SAMPLES = "samples"

Save = Callable[[Snapshot, int], None]
Draw = Callable[[Path], None]


def train(
    learner: Learner[Rows],
    loader: Iterable[Rows],
    config: TrainConfig,
    folder: Path,
    start: int,
    save: Save,
    stop: Event,
    validate: Callable[[], float] | None = None,
    draw: Draw | None = None,
    tensorboard: bool = False,
    quiet: bool = False,
) -> None:
    """Run steps `start` to `config.steps` - 1 and save the last one in the folder.

    Args:
        loader: yields this process's rows of each step from `start` on.
        stop: set it to save after the current step and raise TrainingStoppedError.
        save: writes a snapshot that means "all steps below N are done"; called on rank 0 only.
        validate: returns the loss on the held-out pictures; every process calls it.
        draw: paints a sample grid to a file.
        tensorboard: whether to write event files beside metrics.jsonl.
    """
    first = learner.rank == 0
    if first and start == 0:
        for stale in (folder / SAMPLES).glob("step_*.png"):
            stale.unlink()
    log_or_none = open_log(folder, start, tensorboard) if first else nullcontext()
    began, seen, saved = time.perf_counter(), 0, start
    with (
        log_or_none as log,
        tqdm(
            total=config.steps,
            initial=start,
            unit="step",
            disable=quiet or not first,
            smoothing=0.05,
        ) as bar,
    ):
        batches = iter(loader)

        def keep(done: int) -> None:
            """Save the steps below `done`, unless they are saved."""
            nonlocal saved
            if first and done > saved:
                save(learner.snapshot(), done)
                saved = done

        for index in range(start, config.steps):
            with _kept(keep, index):  # a bad picture is no reason to lose the steps before it
                batch = _read(batches, learner)
            try:
                metrics = learner.step(batch, index)
            except LostProcessError as error:  # it is noticed before any weight changes
                if error.known:
                    keep(index)
                raise
            seen += config.batch_size
            done = index + 1
            if not math.isfinite(metrics.loss):
                raise TrainingDivergedError(
                    f"loss is {metrics.loss} at step {index}; the last saved step is kept. "
                    "Lower --lr or raise --warmup-steps."
                )
            rate = seen / (time.perf_counter() - began)
            bar.set_postfix_str(f"loss {metrics.loss:.4f}, {rate:.1f} images/s", refresh=False)
            bar.update()
            with _kept(keep, done):
                if log and (done % config.log_every == 0 or done == config.steps):
                    log.write(index, metrics, learning_rate(config, index), rate)
            asked = learner.any_asked(stop.is_set())
            if done % config.save_every == 0 or done == config.steps or asked:
                keep(done)
            validates = validate and (done % config.validate_every == 0 or done == config.steps)
            draws = first and draw and config.sample_every and done % config.sample_every == 0
            if validates or draws:  # they take more memory, and may be killed for it
                keep(done)
            if validate and validates:
                loss = validate()
                if log:
                    log.write_validation(index, loss)
            if draw and draws:
                (folder / SAMPLES).mkdir(exist_ok=True)
                draw(folder / SAMPLES / f"step_{done:07d}.png")
            if asked and done < config.steps:
                raise TrainingStoppedError(
                    f"stopped after step {done} and saved; go on with --resume."
                )


def _read(batches: Iterator[Rows], learner: Learner[Rows]) -> Rows:
    """This process's rows of the next step; if one process cannot read its rows, all raise.

    A process that waited for the others' gradients would lose its steps.
    """
    try:
        batch = next(batches)
    except Exception:
        learner.any_asked(True)
        raise
    if learner.any_asked(False):
        raise MdmError("stopped, because another process could not read its pictures.")
    return batch


@contextmanager
def _kept(keep: Callable[[int], None], done: int) -> Generator[None]:
    """Save the steps below `done` if the block fails, which changes no weight."""
    try:
        yield
    except Exception as error:  # not for a second Ctrl-C, which ends at once
        if not isinstance(error, LostProcessError) or error.known:
            keep(done)
        raise


class TrainingDivergedError(MdmError):
    """The loss stopped being a number."""


class TrainingStoppedError(MdmError):
    """The user or the machine asked to stop; everything is saved."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: schedulers run the same command again
