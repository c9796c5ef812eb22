"""One fuzzer: python tests/fuzz/run.py pth --seconds 60

Coverage leads atheris from the kept corpus to new inputs, which it keeps in .cache/fuzz for the
next run. Ends with an error at the first input that breaks the contract, and names the file that
holds it: mend the reader, and keep the file in tests/fuzz/corpus/NAME.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
INSTRUMENTED = ["mdm_apple", "yaml", "pickletools", "zipfile", "csv", "PIL", "fuzz.readers"]
MEGABYTES = 3000  # at which libFuzzer gives up; frameworks and its own tables take their part


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=sorted(p.name for p in CORPUS.iterdir() if p.is_dir()))
    parser.add_argument("--seconds", type=int, default=60)
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(HERE.parent)]
    with atheris.instrument_imports(include=INSTRUMENTED):
        read = importlib.import_module(f"fuzz.readers.{asked.name}").read
        from fuzz.contract import hold, warmed

    found = ROOT / ".cache" / "fuzz" / asked.name
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in (CORPUS / asked.name).iterdir():
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                warmed(read, Path(folder), seed.read_bytes())

        def once(data: bytes) -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                hold(read, Path(folder), data)

        limits = (
            f"-max_total_time={asked.seconds}",
            "-timeout=30",
            "-keep_seed=1",  # C code shows no coverage, so that a seed may seem to add nothing
            f"-rss_limit_mb={MEGABYTES}",
            f"-artifact_prefix={ROOT / 'out' / 'fuzz'}/{asked.name}-",
        )
        (ROOT / "out" / "fuzz").mkdir(parents=True, exist_ok=True)
        places = (str(found), str(CORPUS / asked.name))
        atheris.Setup([sys.argv[0], *limits, *places], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
