"""A wrong call is refused before any framework is imported, in little processor time.

Every case is a process of its own, as a person starts it, so that start-up and imports count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image
from small import plain

from mdm_apple.cli import COMMANDS
from mdm_apple.config.model import ModelConfig, TextConfig
from mdm_apple.config.network import T5Config
from mdm_apple.config.presets import preset
from mdm_apple.config.strict_json import to_json

FRAMEWORKS = ("torch", "mlx", "coremltools", "matplotlib", "jsonschema", "transformers")
# A refusal's processor time, over that of a process that only imports what every command needs. The
# promise is one second where such a process takes 0.35 s.
TIMES_THE_IMPORTS = 2.8
ROOT = Path(__file__).parents[1]

# runs `python -m mdm_apple`, and says at the end what it loaded
PROGRAM = f"""
import atexit, json, os, runpy, sys
loaded = int(sys.argv.pop(1))
def say():
    os.write(loaded, json.dumps(sorted(set({FRAMEWORKS}) & set(sys.modules))).encode())
atexit.register(say)
runpy.run_module("mdm_apple", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Wrong:
    """A call, and what its one sentence says. Names in braces are files of the `place` fixture."""

    call: str
    says: str
    code: int = 1


TABLE = [
    # sampling, training and what they lead to
    Wrong("sample heart --model box:emojy", "did you mean box:emoji"),
    Wrong("sample heart --steps 2 --guidance 1e9", "guidance: expected -100 to 100"),
    Wrong("sample heart --out {full}", "add --overwrite"),
    Wrong("evaluate --data motion --model box:emoji", "this one makes pictures"),
    Wrong("evaluate --data motion:all", "expected motion[:OBJECTS"),
    Wrong("sample heart --compute-units cpuOnly", "has none, so leave them out"),
    Wrong("sample heart --like {file}", "expected a picture or clip made by mdm sample"),
    Wrong("sample heart --stop-at 4x8", "this model makes pictures, so give a side alone"),
    Wrong("sample heart --first-frame {file}", "first-frame: belongs to clips"),
    Wrong("sample heart --image {file}", "cannot be read as a PNG"),
    Wrong("sample heart --image {picture} --mask {black}", "mask: has no white in it"),
    Wrong(
        "sample heart --model box:student --image {picture} --strength 0.6", "1, 0.75, 0.5, 0.25"
    ),
    Wrong("sample --prompts {file} --seeds 1-5000 --out {new}", "5,000 seeds, expected up to", 2),
    Wrong("upscale {picture}", "50 px is none of 16, 32, 64; give --resize"),
    Wrong("sample heart --out {none}.mp4", "pictures are written as .png"),
    Wrong("sample heart --model {clips} --stop-at 8", "give 4x8 or 1x8 (frames x side)"),
    Wrong("sample heart --model {clips} --stop-at 4by8", "nor such as 16x32", 2),
    Wrong("sample heart --model {clips} --frames 16", "makes clips of 4 frames, got 16"),
    Wrong("sample heart --model {clips} --fps 0", "is not in the range", 2),
    Wrong("sample heart --model {clips} --fps nan", "not a finite number", 2),
    Wrong("sample heart --model {clips} --fps 60 --out {none}.gif", "at most 50 frames a second"),
    Wrong("sample heart --model {clips} --out {none}.avi", "clips are written as .png, .webp"),
    Wrong("sample heart --model {clips} --sheet {none}.gif", "sheet is written as .png"),
    Wrong("sample heart --model {clips} --first-frame {none}", "no such file"),
    Wrong("sample heart --model {clips} --last-frame {file}", "cannot be read as a PNG"),
    Wrong("distill --teacher box:emojy --out {new} --steps 1", "did you mean box:emoji"),
    Wrong("train --preset tiny --data {none} --out {new} --steps 0", "not in the range", 2),
    Wrong("train --preset tiny --data {none} --out {new} --steps 1", "no such folder"),
    Wrong("train --preset tiny --data {none} --captions {none} --out {new} --steps 1", "{none}"),
    Wrong(
        "train --preset tiny --grow {none} --data twemoji --out {new} --steps 1", "no such model"
    ),
    Wrong("train --init {bundle} --data twemoji --out {new} --steps 1", "is a bundle, but"),
    Wrong("train --preset tiny --features {none} --data twemoji --out {new} --steps 1", "encoder"),
    Wrong("distill --teacher box:emoji --captions {none} --out {new} --steps 1", "{none}"),
    Wrong("distill --teacher {bundle} --out {new} --steps 1", "is a bundle, but"),
    Wrong(
        "train --preset tiny --data twemoji --steps 1 --batch-size 1000000000 --out {new}",
        "batch_size: expected 1 to 1048576",
    ),
    Wrong(
        "distill --teacher box:emoji --steps 1 --batch-size 1000000000 --out {new}",
        "batch_size: expected 1 to 1048576",
    ),
    Wrong("shards pack {none} --out {none}.tars", "no such folder"),
    Wrong("shards pack scenes --out {none}.tars", "cannot be packed"),
    Wrong("index {none} --out {none}.index", "no such file or folder"),
    Wrong("index {file} --out {none}.index --captions json", "expected txt or json.FIELD"),
    Wrong("index {file} --out {none}.index --where side>=256or1", "joined by and"),
    Wrong("data check {none}", "no such folder"),
    Wrong("data check {folder} --preset tiny --size 8", "comes with the model"),
    Wrong("data check {folder} --model box:emojy", "did you mean box:emoji"),
    Wrong("data check {folder}", "no captioned picture found"),
    Wrong("data check {folder} --size 0", "is not in the range", 2),
    Wrong("data check {folder} --out {file}", "add --overwrite"),
    Wrong(
        "train --preset tiny --data twemoji --steps 1 --skip-bad --out {new}", "applies to a folder"
    ),
    Wrong("evaluate --model box:emojy --data twemoji", "did you mean box:emoji"),
    Wrong("evaluate --data {none}", "no such folder"),
    Wrong("evaluate --data twemoji --captions {none}", "{none}"),
    Wrong("embed --model {bundle} --prompt heart --out {new}", "is a bundle, but"),
    Wrong("embed --model box:emojy --prompt heart --out {new}", "did you mean box:emoji"),
    Wrong("embed --model box:emoji --out {new}", "give one of --prompt, --captions and --data"),
    Wrong("embed --model box:emoji --prompt heart --out {file}", "add --overwrite"),
    # convert
    Wrong("convert box:emojy --out {new}", "did you mean box:emoji"),
    Wrong("convert {none} --out {new}", "no such model"),
    Wrong("convert {bundle} --out {new}", "mdm palettize makes a smaller bundle"),
    Wrong("convert box:emoji --out {full}", "add --overwrite"),
    Wrong(
        "convert box:emoji --out {full} --overwrite", "is not a bundle, so it is not overwritten"
    ),
    Wrong("convert --out {new}", "either a model folder or --preset"),
    Wrong("convert box:emoji --preset tiny --out {new}", "either a model folder or --preset"),
    Wrong("convert box:emoji --seed 1 --out {new}", "seed: makes the weights of a --preset"),
    Wrong("convert box:emoji --layout multifunction --target iOS17 --out {new}", "needs iOS 18"),
    Wrong("convert box:emoji --max-package-mb nan --out {new}", "not a finite number", 2),
    Wrong("convert {frozen} --text-encoder yes --out {new}", "mdm fetch text-encoder --out"),
    Wrong("convert box:emoji --layout flat --out {new}", "is not one of", 2),
    # palettize
    Wrong("palettize {none} --bits 4 --out {new}", "no such model"),
    Wrong("palettize box:emoji --bits 4 --out {new}", "mdm convert box:emoji"),
    Wrong("palettize {bundle} --bits 5 --out {new}", "is not one of", 2),
    Wrong("palettize {bundle} --bits 4 --out {full}", "add --overwrite"),
    Wrong("palettize {bundle} --out {new}", "one of --bits, --variant and --recipe"),
    Wrong("palettize {bundle} --bits 4 --variant compact --out {new}", "one of --bits"),
    Wrong("palettize {bundle} --bits mixed --out {new}", "one of --budget and --least-db"),
    Wrong("palettize {bundle} --variant compact --out {new}", "add --model NAME"),
    Wrong("palettize {bundle} --variant compact --model box:x --out {new}", "no such model"),
    Wrong("palettize {bundle} --variant compact --model {bundle} --out {new}", "is a bundle"),
    Wrong("palettize {bundle} --recipe {none} --out {new}", "no such file"),
    Wrong("palettize {bundle} --bits int8 --group 16 --out {new}", "group: goes with palettes"),
    Wrong("palettize {bundle} --bits mixed --budget nan --out {new}", "not a finite number", 2),
    # verify
    Wrong("verify {none}", "no such model"),
    Wrong("verify {folder}", "holds no model"),
    Wrong("verify box:emoji", "mdm convert box:emoji"),
    Wrong("verify {bundle} --model {bundle}", "is a bundle, but this needs a model folder"),
    Wrong("verify {bundle} --fp16 {none}", "no such model"),
    Wrong("verify {bundle} --compute-units all", "add --runtime coreml"),
    Wrong("verify {bundle} --floor nan", "not a finite number", 2),
    Wrong("verify {bundle} --prompts 9", "is not in the range", 2),
    Wrong("verify {bundle} --ranges {file}", "add --overwrite"),
    # inspect
    Wrong("inspect box:studen", "did you mean box:student"),
    Wrong("inspect", "give either a model folder, a bundle, or --preset"),
    Wrong("inspect box:emoji --preset tiny", "give either a model folder, a bundle, or --preset"),
    Wrong("inspect --beside {bundle}", "give the first one as well"),
    Wrong("inspect box:emoji --beside {bundle}", "compares two bundles"),
    # run
    Wrong("run {none} --out {new}", "no such package"),
    Wrong("run {bundle} --out {new}", "is a bundle; use mdm sample"),
    Wrong("run {folder} --out {new}", "holds no Manifest.json"),
    Wrong("run {file} --out {new}", "is no package"),
    Wrong("run {file} --out {full}", "add --overwrite"),
    Wrong("run {file} --input x --out {new}", "expected NAME=FILE"),
    Wrong("run {file} --input x={none} --out {new}", "no such file"),
    Wrong("run {file} --input x={file} --input x={file} --out {new}", "is given twice"),
    Wrong("run {file} --precision bf16 --out {new}", "is not one of", 2),
    # export
    Wrong("export box:emojy --out {new}", "did you mean box:emoji"),
    Wrong("export {bundle} --out {new}", "is a bundle, but this needs a model folder"),
    Wrong("export box:emoji --out {full}", "add --overwrite"),
    Wrong("export box:emoji --dtype float16 --out {new}", "--dtype is now called --precision", 2),
    Wrong("export box:emoji --precision fp8 --out {new}", "is not one of", 2),
    Wrong("export box:emoji --sampler student --out {new}", "student"),
    Wrong("export box:emoji --steps 5000 --out {new}", "steps: expected 1 to"),
    Wrong("export box:emoji --guidance nan --out {new}", "not a finite number", 2),
    # import and fetch
    Wrong("import {none} --preset tiny --out {new}", "no such file"),
    Wrong("import {file} --out {new}", "give either --preset or --yaml"),
    Wrong("import {file} --preset tiny --out {full}", "add --overwrite"),
    Wrong("import {file} --yaml {none} --out {new}", "no such file"),
    Wrong("fetch flickr65 --out {new}", "is not one of", 2),
    Wrong("fetch flickr64 --out {full}", "add --overwrite"),
    Wrong("fetch flickr64 --out {new}", "add --accept to agree in advance"),
    Wrong("fetch flickr64 --out {new} --accept --base-url nonsense", "starts with https://"),
    Wrong("fetch text-encoder --out {none}", "no such model"),
    Wrong("fetch text-encoder --out {bundle}", "is a bundle, but this needs a model folder"),
    # serve-bundle, demo, doctor
    Wrong("serve-bundle {none}", "no such model"),
    Wrong("serve-bundle box:student --json", "mdm convert box:student"),
    Wrong("serve-bundle {bundle} --precision bf16", "is not one of", 2),
    Wrong("demo --out {full}", "add --overwrite"),
    Wrong("demo --out {new} --steps 9", "is not in the range", 2),
    Wrong("doctor {none}", "no such file"),
    Wrong("doctor {file} --psnr nan", "not a finite number", 2),
    # bench
    Wrong("bench run trainin", "Did you mean 'training'"),
    Wrong("bench run --repetitions 4", "is not in the range", 2),
    Wrong("bench report --check surplus", "unexpected extra argument", 2),
    Wrong("bench compare {none}", "no such file or folder"),
    Wrong("bench compare {file} {file} {file}", "expected one or two paths, got 3"),
    Wrong("bench compare {file} --tolerance nan", "not a finite number", 2),
    Wrong("bench device {bundle}", "say where the cells go, or add --plan"),
    Wrong("bench device {none} --plan", "no such model"),
    Wrong("bench device box:emoji --plan", "mdm convert box:emoji"),
    Wrong("bench device {bundle} --plan --limit-minutes nan", "not a finite number", 2),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths that are absent, full, and of each kind; the bundle only looks like one."""
    root = tmp_path_factory.mktemp("early")
    names = ("new", "none", "full", "file", "bundle", "folder", "frozen", "clips")
    paths = {name: root / name for name in names}
    for name, color in (("picture", "red"), ("black", "black")):
        paths[name] = root / f"{name}.png"
        Image.new("RGB", (50, 50), color).save(paths[name])
    for name in ("full", "bundle", "folder", "frozen", "clips"):
        paths[name].mkdir()
    (paths["full"] / "mine.txt").write_text("mine")
    (paths["folder"] / "mine.txt").write_text("mine")
    (paths["bundle"] / "manifest.json").write_text("{}")
    paths["file"].write_text("mine")
    text = TextConfig(max_tokens=4, encoder=T5Config(20, 8, 4, 12, 2, 2), source="google/small-t5")
    config = ModelConfig(plain(text_dim=8), 8, text=text)
    (paths["frozen"] / "config.json").write_text(to_json(config))
    (paths["clips"] / "config.json").write_text(to_json(preset("tiny_video")))
    return paths


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str
    seconds: float
    loaded: list[str]


@pytest.fixture(scope="module")
def limit(place: dict[str, Path]) -> float:
    """The seconds of processor time that a refusal may take on this machine."""
    imports = "import click, numpy, PIL.Image, safetensors, tqdm, yaml"
    return TIMES_THE_IMPORTS * max(
        started([sys.executable, "-c", imports], place["folder"]).seconds for _ in range(3)
    )


def run(arguments: list[str], folder: Path) -> Ended:
    """A command in a process of its own."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as loaded:
        ended = started(
            [sys.executable, "-c", PROGRAM, str(writing), *arguments], folder, (writing,)
        )
        return replace(ended, loaded=json.loads(loaded.read()))


def started(words: list[str], folder: Path, pipes: tuple[int, ...] = ()) -> Ended:
    """A process that has ended: what it printed, and its processor time, user and system.

    pipes: it inherits these, and they are closed here.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        pass_fds=pipes,
    )
    for pipe in pipes:
        os.close(pipe)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as out, process.stderr as err:
        printed, said = out.read(), err.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(process.returncode, printed, said, used.ru_utime + used.ru_stime, [])


def everything(place: dict[str, Path]) -> set[Path]:
    return set(place["new"].parent.rglob("*"))


@pytest.mark.parametrize("wrong", TABLE, ids=lambda wrong: wrong.call)
def test_a_wrong_call_is_refused_at_once(
    wrong: Wrong, place: dict[str, Path], limit: float
) -> None:
    before = everything(place)
    words = [word.format(**place) for word in wrong.call.split()]
    ended = run(words, place["folder"])
    if ended.seconds > limit:  # a busy machine may count too much, but not twice
        ended = run(words, place["folder"])
    assert ended.code == wrong.code, ended.stderr
    assert ended.stdout == ""
    *remarks, sentence, end = ended.stderr.split("\n")
    assert end == ""
    assert len(remarks) <= 1  # what is known of the licence
    assert sentence.startswith("mdm: ")
    assert wrong.says.format(**place) in sentence
    assert sentence[-1] in ".?"
    assert ended.loaded == []
    assert ended.seconds <= limit
    assert everything(place) == before


def test_the_table_has_every_command() -> None:
    assert {wrong.call.split()[0] for wrong in TABLE} == set(COMMANDS)


def test_a_framework_that_is_loaded_would_be_seen(place: dict[str, Path]) -> None:
    """The twin: only what needs torch can tell a damaged bundle from a sound one."""
    ended = run(["verify", str(place["bundle"])], place["folder"])
    assert ended.code == 1
    assert "torch" in ended.loaded
