"""kill -9 at random moments of a training run, also inside the writing of a checkpoint.

Every kill is followed by --resume; in the end everything in the folder is bit-identical to what an
undisturbed run leaves.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from small import trainable_model
from train_process import (
    arguments,
    finish,
    hashes,
    logged,
    resuming,
    started,
    wait_until,
)

from mdm_apple.config.strict_json import to_json
from mdm_apple.storage.atomic_folder import has_file, locate
from mdm_apple.storage.model_folder import load_weights

STEP = 0.3  # seconds, about: a kill falls somewhere in a step and its save


def killed_at_random(config: Path, out: Path, steps: int, kills: int, seed: int) -> Counter[str]:
    """Run until `kills` processes were killed, and then to the end.

    Of three kills one falls a random moment into the writing of a save, one at the moment when its
    files move into place, and one anywhere. Returns what the kills left behind.
    """
    asked = arguments(config, "twemoji", out, steps, "--save-every", "1")
    luck, left = random.Random(seed), Counter[str]()
    for number in range(kills):
        saved_before = step_of(out)
        command = resuming(asked) if saved_before else asked
        with started(command) as process:
            assert wait_until(lambda before=saved_before: step_of(out) > before, process)
            if number % 3 == 0:
                assert wait_until((out / ".saving").exists, process, pause=0.0)
                time.sleep(luck.random() * 0.02)
            elif number % 3 == 1:
                assert wait_until((out / ".commit").exists, process, pause=0.0)
            else:
                time.sleep(luck.random() * STEP)
            assert process.poll() is None, "the run was over before the kill; give it more steps"
            process.kill()
            process.wait()
        left.update(f for f in (".saving", ".commit") if (out / f).exists())
        load_weights(out)  # whole at any moment, also for a reader that tidies nothing
    done = finish(resuming(asked))
    assert done.returncode == 0, done.stderr
    return left


def step_of(out: Path) -> int:
    """The last step that counts as saved, 0 for none."""
    if not has_file(out, "training.json"):
        return 0
    try:
        text = locate(out, "training.json").read_text()
        return int(text.rsplit('"step":', 1)[1].strip(" }\n"))
    except (FileNotFoundError, IndexError):  # it moved just now
        return 0


def check(tmp_path: Path, steps: int, kills: int, seed: int) -> Counter[str]:
    config = tmp_path / "config.json"
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    done = finish(arguments(config, "twemoji", whole, steps, "--save-every", "1"))
    assert done.returncode == 0, done.stderr
    left = killed_at_random(config, disturbed, steps, kills, seed)
    assert hashes(disturbed) == hashes(whole)
    assert logged(disturbed) == logged(whole)
    assert list(logged(whole)) == list(range(steps))
    assert sorted(p.name for p in disturbed.iterdir()) == sorted(p.name for p in whole.iterdir())
    return left


def test_a_run_that_was_killed_twice_ends_bit_identical(tmp_path: Path) -> None:
    check(tmp_path, steps=14, kills=2, seed=0)


@pytest.mark.slow
def test_a_run_that_was_killed_twenty_times_ends_bit_identical(tmp_path: Path) -> None:
    left = check(tmp_path, steps=160, kills=20, seed=1)
    print(f"kills inside a save: {dict(left)} of 20")
    assert left[".saving"] >= 4
