"""`python -m benchmarks.shards`: an index of shards beside a folder of the same pictures.

Prints what opening costs, pictures for each second of processor time, and peak memory, each side in
a process of its own, in turn. `--simulate 1e8 1e10` opens indexes of so many samples instead: their
tables are real, their shards are not there.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mdm_apple.config.strict_json import to_json
from mdm_apple.conversion.footprint import peak_bytes
from mdm_apple.data.dataset import Pictures
from mdm_apple.data.folder import open_folder
from mdm_apple.data.shards.index_files import INDEX, TABLE, VERSION, IndexNote, Table
from mdm_apple.data.shards.open_index import OpenIndex
from mdm_apple.data.shards.plans import plan_of
from mdm_apple.data.shards.shard_pictures import open_shards
from mdm_apple.data.shards.write_index import write_index
from mdm_apple.storage.tensorfile import write_tensors

SIDE = 64
SAMPLES_PER_SHARD = 1000
DISTINCT = 200  # pictures; more would only take longer to make
READ = 6000  # pictures of a run
RUNS = 5
BATCH, STEPS = 1024, 50  # of a simulation
SIDES = ("folder", "shards")
NONE = np.empty(0, np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--simulate", type=float, nargs="+", default=[])
    parser.add_argument("--side", choices=[*SIDES, "simulated"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side is not None:
        measure: dict[str, Callable[[Path], dict[str, float]]] = {
            "folder": lambda work: read(lambda: open_folder(work / "folder", SIDE)),
            "shards": lambda work: read(lambda: open_shards(work / "index", SIDE, None)),
            "simulated": simulated,
        }
        print(json.dumps(measure[asked.side](asked.work)))
    elif asked.simulate:
        for samples in asked.simulate:
            simulate(int(samples))
    else:
        compare(asked.pictures)


def compare(count: int) -> None:
    """Both sides in turn, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_pictures(work, count)
        start = time.process_time()
        note = write_index([str(work / "shards")], work / "index")
        seconds = time.process_time() - start
        print(f"indexing: {note.samples / seconds:.0f} samples for each CPU second")
        runs = [{side: in_a_process(side, work) for side in SIDES} for _ in range(RUNS)]
    for side in SIDES:
        for name in ("open_s", "pictures_per_s", "peak_mb"):
            values = [run[side][name] for run in runs]
            shown = ", ".join(f"{value:.3g}" for value in values)
            print(f"{side} {name}: {statistics.median(values):.3g} ({shown})")
    rates = [run["shards"]["pictures_per_s"] / run["folder"]["pictures_per_s"] for run in runs]
    print(f"shards / folder, pictures for each CPU second: {statistics.median(rates):.3f}")


def make_pictures(work: Path, count: int) -> None:
    """JPEGs of 256 px and about 22 KB, as files and in shards as WebDataset writes them."""
    random = np.random.RandomState(0)
    pictures: list[bytes] = []
    for _ in range(DISTINCT):
        coarse = random.randint(0, 256, (64, 64, 3), dtype=np.uint8)
        jpeg = io.BytesIO()
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(
            jpeg, "JPEG", quality=80
        )
        pictures.append(jpeg.getvalue())
    print(f"{count} pictures of {sum(map(len, pictures)) / DISTINCT / 1000:.1f} KB")
    (work / "folder").mkdir()
    (work / "shards").mkdir()
    for first in range(0, count, SAMPLES_PER_SHARD):
        path = work / "shards" / f"{first // SAMPLES_PER_SHARD:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
            for number in range(first, min(count, first + SAMPLES_PER_SHARD)):
                caption = f"a picture with the number {number}".encode()
                for suffix, data in (("jpg", pictures[number % DISTINCT]), ("txt", caption)):
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size, info.mtime = len(data), 1700000000.25
                    shard.addfile(info, io.BytesIO(data))
                    (work / "folder" / info.name).write_bytes(data)


def read(opened: Callable[[], Pictures]) -> dict[str, float]:
    """Open, and read pictures in a shuffled order."""
    start = time.process_time()
    pictures = opened()
    after = time.process_time()
    order = np.random.RandomState(0).permutation(len(pictures))[:READ]
    random = np.random.Generator(np.random.Philox(0))
    for index in order:
        pictures.drawn(int(index), random)
    seconds = time.process_time() - after
    return {
        "open_s": after - start,
        "pictures_per_s": len(order) / seconds,
        "peak_mb": (peak_bytes() or 0) / 1e6,
    }


def simulate(samples: int) -> None:
    """Write the table of an index, and open it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shards = -(-samples // 10_000)
        names = "".join(f"{shard:08d}.tar" for shard in range(shards)).encode()
        counts = np.full(shards, samples // shards, np.int64)
        table = Table(
            np.frombuffer(names, np.uint8),
            np.arange(1, shards + 1) * 12,
            np.full(shards, 300_000_000, np.int64),
            counts,
            np.zeros((shards, 32), np.uint8),
        )
        digest = write_tensors(work / TABLE, table.arrays).sha256
        note = IndexNote(VERSION, ".", "txt", (), shards, int(counts.sum()), digest)
        (work / INDEX).write_text(to_json(note), encoding="utf-8")
        found = in_a_process("simulated", work)
    print(
        f"{samples:.0e} samples in {shards} shards: open {found['open_s']:.2f} CPU s, plan "
        f"{found['plan_s']:.2f}, a batch of {BATCH} {1000 * found['batch_s']:.1f} ms, peak "
        f"{found['peak_mb']:.0f} MB"
    )


def simulated(work: Path) -> dict[str, float]:
    start = time.process_time()
    index = OpenIndex(work)
    opened = time.process_time()
    plan = plan_of("lanes", index.starts, BATCH, 0, NONE)
    plan.indices(0)
    planned = time.process_time()
    for step in range(1, STEPS + 1):
        plan.indices(1000 * step)
    return {
        "open_s": opened - start,
        "plan_s": planned - opened,
        "batch_s": (time.process_time() - planned) / STEPS,
        "peak_mb": (peak_bytes() or 0) / 1e6,
    }


def in_a_process(side: str, work: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.shards", "--side", side, "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
