"""Malformed things that the project itself made: models, runs, pictures, features, bundles."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from malformed import Case, Command, Room, edited, png, safetensors, spoiled
from PIL import Image, PngImagePlugin

from mdm_apple.clip_file.embedded_text import KEY
from mdm_apple.storage.model_folder import load_weights
from mdm_apple.storage.tensorfile import read_tensors, write_tensors

WEIGHTS = "model.safetensors"
Change = Callable[[Path], object]


def sample(room: Room, model: Path, *more: str | Path) -> Command:
    common = ("--steps", "2", "--quiet", "--out", room.out)
    return "sample", "--model", model, "--prompt", "red heart", *common, *more


def model_case(name: str, says: str, change: Change) -> Case:
    """Sampling from a copy of the model after `change` was at it."""

    def build(room: Room) -> Command:
        folder = room.copy(room.good.model)
        change(folder)
        return sample(room, folder)

    return Case(f"model {name}", says, build)


def write(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def edit(name: str, **changes: Any) -> Change:
    return lambda folder: edited(
        folder / name, {k.replace("__", "."): v for k, v in changes.items()}
    )


def drop(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def weights(change: Callable[[dict[str, Any]], object]) -> Change:
    """The weights file written anew, with whatever `change` did to the arrays."""

    def apply(folder: Path) -> None:
        tensors = load_weights(folder)
        change(tensors)
        write_tensors(folder / WEIGHTS, tensors)

    return apply


def not_a_number(tensors: dict[str, Any]) -> None:
    tensors["conv_in.bias"][0] = np.nan


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
MODELS = [
    Case("model absent", "no such model;", lambda room: sample(room, room.at / "none")),
    Case("model a file", "is a file; give a model folder", lambda room: sample(room, room.good.photo)),
    Case("model empty folder", "holds no model; expected config.json", lambda room: sample(room, room.at)),
    model_case("without weights", "holds no model.safetensors", drop(WEIGHTS)),
    model_case("without configuration", "holds no model; expected config.json", drop("config.json")),
    model_case("without tokenizer", "holds no tokenizer.model", drop("tokenizer.model")),
    model_case("without encoder", "holds no text_encoder.safetensors", drop("text_encoder.safetensors")),
    model_case("without hashes", "holds no hashes.json", drop("hashes.json")),
    model_case("garbled hashes", "damaged; restore the folder", write("hashes.json", b"{]")),
    model_case("garbled configuration", "not valid JSON", write("config.json", b"\x00\x01")),
    model_case("edited widths", "should be", edit("config.json", model__channels=[64, 64])),
    model_case("edited depth", "missing", edit("config.json", model__num_resnets=[2, 2])),
    model_case("edited encoder", "text_encoder.safetensors", edit("config.json", text__encoder__num_layers=2)),
    model_case("NaN weights", "NaN or infinite", weights(not_a_number)),
    model_case("weights of another model", "do not belong to this configuration", lambda f: write_tensors(f / WEIGHTS, {"a": np.zeros(3, np.float32)})),
    model_case("whole-number weights", "floating-point", weights(lambda w: w.update({k: v.astype(np.int32) for k, v in w.items()}))),
    model_case("empty weights", "not a safetensors file", write(WEIGHTS, b"")),
    model_case("truncated weights", "cut off or damaged", lambda f: spoiled(f / WEIGHTS, lambda d: d[:-100])),
    model_case("header of 2**60 bytes", "not a safetensors file", write(WEIGHTS, safetensors({}, length=1 << 60))),
    model_case("header no JSON", "invalid JSON", write(WEIGHTS, safetensors(b"{" * 50_000))),
    model_case("overlapping tensors", "invalid offset for tensor", write(WEIGHTS, safetensors({"a": ENTRY, "b": ENTRY}, bytes(8)))),
    model_case("impossible shape", "expected usize", write(WEIGHTS, safetensors({"a": ENTRY | {"shape": [-1]}}, bytes(8)))),
    model_case("huge shape", "overflow", write(WEIGHTS, safetensors({"a": ENTRY | {"shape": [1 << 40, 1 << 40]}}, bytes(8)))),
    model_case("unknown number type", "unknown variant `X9`", write(WEIGHTS, safetensors({"a": ENTRY | {"dtype": "X9"}}, bytes(8)))),
    model_case("garbage for a tokenizer", "not the one the model was trained with", write("tokenizer.model", b"garbage")),
    model_case("garbage for a tokenizer, unrecorded", "not a SentencePiece model", lambda f: [write("tokenizer.model", bytes(99))(f), edit("config.json", text__tokenizer_sha256=None)(f)]),
    model_case("a link out for an unfinished save", "damaged", lambda f: [(f / ".commit").mkdir(), (f / ".commit" / "hashes.json").write_text('{"/etc/passwd": {}}')]),
]  # fmt: skip

# --- runs ---------------------------------------------------------------------------------------


def resume(room: Room, folder: Path, *more: str | Path) -> Command:
    common = ("--data", room.good.pictures, "--out", folder, "--batch-size", "4", "--resume")
    return "train", "--steps", "4", "--quiet", *common, *more


def run_case(name: str, says: str, *more: str, change: Change = lambda _: None) -> Case:
    def build(room: Room) -> Command:
        folder = room.copy(room.good.run)
        change(folder)
        return resume(room, folder, *more)

    return Case(f"run {name}", says, build)


def other_pictures(room: Room) -> Command:
    pictures = room.copy(room.good.pictures)
    (pictures / "03.txt").write_text("another caption")
    return resume(room, room.copy(room.good.run), "--data", pictures)


def trained(room: Room, *more: str | Path) -> Command:
    common = ("--data", room.good.pictures, "--out", room.out, "--steps", "1", "--batch-size", "4")
    return "train", *common, "--quiet", *more


def overwriting(room: Room) -> Command:
    """A run over an older one, which fails when its pictures are read."""
    pictures = room.copy(room.good.pictures)
    for path in pictures.glob("*.png"):
        path.write_bytes(path.read_bytes()[:-40])
    old = room.copy(room.good.run)
    return trained(room, "--init", room.good.model, "--data", pictures, "--out", old, "--overwrite")


RUNS = [
    Case("run absent", "no such model folder", lambda room: resume(room, room.out)),
    Case("run that is only a model", "holds no training.json", lambda room: resume(room, room.copy(room.good.model))),
    run_case("other batch size", "batch_size: the run in", "--batch-size", "8"),
    run_case("other rate", "lr: the run in", "--lr", "0.5"),
    run_case("fewer steps", "already at step 2", "--steps", "1"),
    run_case("with init", "leave out --init and --grow", "--init", "somewhere"),
    run_case("edited state", "training.json changed since the save", change=edit("training.json", step=1)),
    run_case("state no JSON", "training.json is damaged", change=write("training.json", b"[")),
    run_case("state of nothing", "expected an object", change=write("training.json", b"{}")),
    run_case("flipped moment", "training.safetensors changed since the save", change=lambda f: spoiled(f / "training.safetensors", lambda d: d[:-1] + bytes([d[-1] ^ 1]))),
    run_case("edited configuration", "config.json changed since the save", change=edit("config.json", diffusion__threshold="none")),
    Case("run on other pictures", "was trained on other pictures", other_pictures),
    Case("run over an older one", "cannot be read as a PNG", overwriting),
    Case("run from nowhere", "no such model;", lambda room: trained(room, "--init", room.at / "none")),
    Case("run with init and preset", "leave out preset", lambda room: trained(room, "--init", room.good.model, "--preset", "tiny")),
    Case("run with init and grow", "choose one of them", lambda room: trained(room, "--init", room.good.model, "--grow", room.good.model)),
    Case("run that grows what does not fit", "not an inner level", lambda room: trained(room, "--preset", "emoji", "--grow", room.good.model)),
    Case("run into a full folder", "choose another --out", lambda room: trained(room, "--init", room.good.model, "--out", room.copy(room.good.pictures))),
    Case("run without steps", "0 is not in the range", lambda room: trained(room, "--init", room.good.model, "--steps", "0"), code=2),
    Case("run with a seed of text", "not a valid integer", lambda room: trained(room, "--init", room.good.model, "--seed", "x"), code=2),
    Case("run with a rate that is no number", "lr", lambda room: trained(room, "--init", room.good.model, "--lr", "nan")),
    Case("run with all pictures held out", "leaves none to train on", lambda room: trained(room, "--init", room.good.model, "--validation-share", "0.99")),
]  # fmt: skip

# --- sampling -----------------------------------------------------------------------------------


def sample_case(name: str, says: str, *more: str, code: int = 1) -> Case:
    return Case(
        f"sample {name}", says, lambda room: sample(room, room.good.model, *more), code=code
    )


def existing(room: Room) -> Command:
    return sample(room, room.good.model, "--out", room.file("mine.png", b"mine"))


def existing_strip(room: Room) -> Command:
    room.file("new_steps.png", b"mine")
    return sample(room, room.good.model, "--out", room.at / "new.png", "--previews")


HUGE = zlib.compress(bytes(10_000 * 10_001))  # whole, and more pixels than are believed


def like(room: Room, picture: Path) -> Command:
    return "sample", "--model", room.good.model, "--like", picture, "--out", room.out, "--quiet"


def recipe_case(name: str, says: str, change: Callable[[dict[str, Any]], object]) -> Case:
    """A picture whose recipe was altered; what `change` returns is written as it is."""

    def build(room: Room) -> Command:
        with Image.open(room.good.photo) as picture:
            recipe = json.loads(picture.text[KEY])  # type: ignore[attr-defined]
        changed = change(recipe)
        info = PngImagePlugin.PngInfo()
        info.add_itxt(KEY, changed if isinstance(changed, str) else json.dumps(recipe))
        path = room.at / "like.png"
        Image.new("RGB", (4, 4)).save(path, pnginfo=info)
        return like(room, path)

    return Case(f"recipe {name}", says, build)


SAMPLING = [
    sample_case("negative seed", "is not in the range", "--seed", "-1", code=2),
    sample_case("huge seed", "is not in the range", "--seed", str(1 << 40), code=2),
    sample_case("more steps than there are", "steps: expected 1 to 1000", "--steps", "5000"),
    sample_case("guidance out of range", "guidance: expected -100 to 100", "--guidance", "1e9"),
    sample_case("guidance no number", "guidance: expected -100 to 100", "--guidance", "nan"),
    sample_case("batch of none", "is not in the range", "--batch-size", "0", code=2),
    sample_case("unknown side", "this model has sides 8, 4, got 12", "--stop-at", "12"),
    sample_case("unknown sampler", "is not one of", "--sampler", "euler", code=2),
    sample_case("unknown option", "No such option", "--sead", "1", code=2),
    sample_case("backend of bundles", "is a model folder", "--backend", "reference"),
    Case("sample over a picture", "add --overwrite", existing),
    Case("sample over a strip", "add --overwrite", existing_strip),
    Case("sample below a file", "cannot be written", lambda room: sample(room, room.good.model, "--out", room.file("f", b"x") / "y" / "z.png")),
    Case("like a foreign picture", "carries no recipe", lambda room: like(room, room.good.pictures / "00.png")),
    Case("like no picture", "cannot read it", lambda room: like(room, room.file("x.png", b"no picture"))),
    Case("like a truncated picture", "cannot read it", lambda room: like(room, spoiled(room.copy(room.good.photo), lambda d: d[: len(d) // 2]))),
    Case("like a bomb", "cannot read it", lambda room: like(room, room.file("x.png", png(60_000, 60_000, b"")))),
    Case("like a huge picture", "cannot read it", lambda room: like(room, room.file("x.png", png(10_000, 10_000, HUGE)))),
    recipe_case("no JSON", "not valid JSON", lambda _: "{broken"),
    recipe_case("a list", "expected an object", lambda _: "[1]"),
    recipe_case("missing seed", "key 'seed' is missing", lambda r: r.pop("seed")),
    recipe_case("unknown key", "unknown key", lambda r: r.update(command="rm")),
    recipe_case("impossible seed", "seed", lambda r: r.update(seed=-5)),
    recipe_case("impossible steps", "steps", lambda r: r.update(steps=-5)),
    recipe_case("unknown sampler", "sampler", lambda r: r.update(sampler="euler")),
    recipe_case("unknown grid", "grid", lambda r: r.update(grid="odd")),
    recipe_case("unknown threshold", "threshold", lambda r: r.update(threshold="odd")),
    recipe_case("unknown precision", "precision", lambda r: r.update(precision="fp7")),
    recipe_case("too long", "carries no recipe", lambda r: r.update(prompt="x" * 70_000)),
    recipe_case("huge number", "eta", lambda r: r.update(eta=10**400)),
]  # fmt: skip

# --- features and frozen encoders ---------------------------------------------------------------


def with_features(room: Room, features: Path) -> Command:
    return sample(room, room.good.frozen, "--features", features)


def features_case(name: str, says: str, change: Callable[[bytes], bytes]) -> Case:
    return Case(
        f"features {name}",
        says,
        lambda room: with_features(room, spoiled(room.copy(room.good.features), change)),
    )


def embed(room: Room, encoder: Path, *more: str | Path) -> Command:
    place = ("--model", room.good.frozen, "--text-encoder", encoder, "--out", room.out)
    return "embed", *place, "--prompt", "red heart", "--quiet", *more


def encoder_case(name: str, says: str, change: Change) -> Case:
    def build(room: Room) -> Command:
        folder = room.copy(room.good.encoder)
        change(folder)
        return embed(room, folder)

    return Case(f"encoder {name}", says, build)


def of_another_encoder(room: Room) -> Command:
    model = room.copy(room.good.frozen)
    edited(model / "config.json", {"text.encoder_sha256": "0" * 64})
    return sample(room, model, "--features", room.good.features)


FEATURES = [
    Case("features absent", "no such file", lambda room: with_features(room, room.at / "none")),
    Case("features of another encoder", "was made with encoder_sha256", of_another_encoder),
    Case("features lacking the caption", "no features for the caption", lambda room: sample(room, room.good.frozen, "--features", room.good.features, "--prompt", "unheard")),
    Case("features for a trained encoder", "was made with encoder_sha256", lambda room: sample(room, room.good.model, "--features", room.good.features)),
    features_case("truncated", "not a complete file", lambda d: d[: len(d) - 40]),
    features_case("cut in the header", "not a complete file", lambda d: d[:100]),
    features_case("empty", "not a complete file", lambda d: b""),
    features_case("with a huge header", "not a complete file", lambda d: b"\xff" * 8 + d[8:]),
    features_case("with an index that leaves", "invalid index", lambda d: d[:-16] + b"\xff" * 16),
    encoder_case("without configuration", "no such file", drop("config.json")),
    encoder_case("without weights", "holds no model.safetensors", drop(WEIGHTS)),
    encoder_case("without tokenizer", "no such tokenizer", drop("spiece.model")),
    encoder_case("other tokenizer", "expected the tokenizer with SHA-256", write("spiece.model", b"other")),
    encoder_case("truncated", "cannot be read as safetensors", lambda f: spoiled(f / WEIGHTS, lambda d: d[:-9])),
    encoder_case("of another size", "expected shape", edit("config.json", d_ff=64)),
    encoder_case("other kind", "expected model_type t5", edit("config.json", model_type="bert")),
    encoder_case("that is another one", "another text encoder", edit("config.json", layer_norm_epsilon=0.5)),
    encoder_case("absurd", "num_layers: expected 1 to 256", edit("config.json", num_layers=10**9)),
    Case("encoder absent", "is missing", lambda room: embed(room, room.at / "none")),
    Case("embed nothing", "give one of --prompt, --captions and --data", lambda room: ("embed", "--model", room.good.frozen, "--out", room.out)),
    Case("embed over a file", "add --overwrite", lambda room: embed(room, room.good.encoder, "--out", room.file("f", b"x"))),
    Case("embed into nowhere", "cannot be written", lambda room: embed(room, room.good.encoder, "--out", room.at / "no" / "f")),
    Case("embed an endless prompt", "at most 65,536 characters", lambda room: embed(room, room.good.encoder, "--prompt", "x" * 70_000)),
]  # fmt: skip

# --- bundles ------------------------------------------------------------------------------------


def bundle_case(name: str, says: str, change: Change, *command: str) -> Case:
    def build(room: Room) -> Command:
        folder = room.copy(room.good.bundle)
        change(folder)
        return *(command or ("inspect",)), folder

    return Case(f"bundle {name}", says, build)


def flip(name: str, place: int) -> Change:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)

    return apply


def sealed_again(change: Change) -> Change:
    """Alter a bundle as someone does who knows how its hashes are made."""

    def apply(folder: Path) -> None:
        from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle, finish_bundle

        manifest = Bundle.open(folder).manifest
        change(folder)
        (folder / MANIFEST).unlink()
        finish_bundle(folder, manifest)

    return apply


def signed(change: Callable[[Any], Any]) -> Change:
    """Alter a manifest alone, with a digest that is right again."""

    def apply(folder: Path) -> None:
        from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle
        from mdm_apple.conversion.bundle.manifest import write_manifest

        changed = change(Bundle.open(folder).manifest)
        (folder / MANIFEST).write_bytes(write_manifest(changed))

    return apply


def other_tensors(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        tensors = {k: np.array(v) for k, v in read_tensors(folder / name).items()}
        change(tensors)
        write_tensors(folder / name, tensors)

    return sealed_again(apply)


def another_model(room: Room) -> Command:
    model = room.copy(room.good.model)
    edited(model / "config.json", {"diffusion.schedule.num_steps": 500})
    return *VERIFY, room.good.bundle, "--model", model


GOLDEN, TABLES = "golden.safetensors", "tables.safetensors"
VERIFY = ("verify", "--quiet", "--prompts", "1")
BUNDLES = [
    Case("bundle absent", "no such model", lambda room: ("verify", room.at / "none")),
    Case("bundle an empty folder", "holds no model", lambda room: ("verify", room.at)),
    bundle_case("flipped byte", "the SHA-256 of denoiser.mlpackage/Data/com.apple.CoreML/weights/weight.bin differs", flip("denoiser.mlpackage/Data/com.apple.CoreML/weights/weight.bin", 5000)),
    bundle_case("missing file", "is missing; copy the whole bundle again", drop(TABLES)),
    bundle_case("unlisted file", "is not listed in manifest.json", write("extra.txt", b"x")),
    bundle_case("truncated file", "the size of golden.safetensors differs", lambda f: spoiled(f / GOLDEN, lambda d: d[:-5])),
    bundle_case("link", "is a link", lambda f: [(f / TABLES).unlink(), (f / TABLES).symlink_to("/etc/hostname")]),
    bundle_case("manifest no JSON", "not valid JSON", write("manifest.json", b"{")),
    bundle_case("manifest deep", "not valid JSON", write("manifest.json", b"[" * 100_000)),
    bundle_case("other schema", "has schema 99", edit("manifest.json", schema=99)),
    bundle_case("path outside", "leads out of the bundle", signed(lambda m: dataclasses.replace(m, tables="../tables.safetensors"))),
    bundle_case("file listed outside", "leads out of the bundle", signed(lambda m: dataclasses.replace(m, files=(*m.files, dataclasses.replace(m.files[0], path="/etc/hostname"))))),
    bundle_case("steps that the tables lack", "steps that its tables do not have", signed(lambda m: dataclasses.replace(m, golden=dataclasses.replace(m.golden, times=(1, 5000))))),
    bundle_case("altered manifest", "does not match its digest", edit("manifest.json", num_steps=500)),
    bundle_case("without golden record", "golden", other_tensors(GOLDEN, lambda t: t.clear()), *VERIFY),
    bundle_case("golden record of another shape", "golden", other_tensors(GOLDEN, lambda t: t.update({k: v[..., :4] for k, v in t.items() if k.startswith("x_t")})), *VERIFY),
    bundle_case("without tables", "lacks the table", other_tensors(TABLES, lambda t: t.clear()), *VERIFY),
    bundle_case("tables of another shape", "table", other_tensors(TABLES, lambda t: t.update({k: v[:7] for k, v in t.items()})), *VERIFY),
    bundle_case("configuration of another model", "config.json belongs to another model", sealed_again(edit("config.json", side=16)), *VERIFY),
    Case("verify another model", "another configuration", another_model),
    Case("verify no model", "no such model;", lambda room: (*VERIFY, room.good.bundle, "--model", room.at / "none")),
    Case("palettize a model folder", "make one with mdm convert", lambda room: ("palettize", room.good.model, "--bits", "4", "--out", room.out)),
    Case("palettize to 5 bits", "is not one of", lambda room: ("palettize", room.good.bundle, "--bits", "5", "--out", room.out), code=2),
    Case("palettize over pictures", "is not a bundle, so it is not overwritten", lambda room: ("palettize", room.good.bundle, "--bits", "4", "--overwrite", "--out", room.copy(room.good.pictures))),
    Case("convert with a seed beyond 32 bits", "is not in the range", lambda room: ("convert", "--preset", "tiny", "--seed", "9" * 20, "--out", room.out), code=2),
    Case("convert nothing", "either a model folder or --preset", lambda room: ("convert", "--out", room.out)),
    Case("convert a folder that is no model", "holds no model; expected config.json", lambda room: ("convert", room.at, "--out", room.out)),
    Case("convert over pictures", "exists; choose another --out", lambda room: ("convert", "--preset", "tiny", "--quiet", "--out", room.copy(room.good.pictures))),
    Case("convert to a system unknown", "is not one of", lambda room: ("convert", "--preset", "tiny", "--target", "iOS3", "--out", room.out), code=2),
    Case("sample a bundle up to a side", "cannot stop at", lambda room: sample(room, room.good.bundle, "--stop-at", "4")),
    Case("sample a bundle on torch", "is a bundle", lambda room: sample(room, room.good.bundle, "--backend", "torch")),
]  # fmt: skip

# --- no room on the disk ------------------------------------------------------------------------

FULL = "the disk is full or a file size limit is reached"
LIMIT = 1 << 12


def pth(room: Room) -> Command:
    return "import", room.good.pth, "--preset", "tiny", "--out", room.out


def small_tables(room: Room) -> Command:
    """A model whose text encoder is the first thing in its bundle that is large."""
    model = room.copy(room.good.model)
    edited(model / "config.json", {"diffusion.schedule.num_steps": 20})
    return "convert", model, "--quiet", "--out", room.out


DISK = [
    Case("full disk, train", FULL, lambda room: trained(room, "--init", room.good.model), LIMIT),
    Case("full disk, metrics", FULL, lambda room: trained(room, "--init", room.good.model, "--log-every", "1", "--steps", "50"), 200),
    Case("full disk, resume", FULL, lambda room: resume(room, room.copy(room.good.run)), LIMIT),
    Case("full disk, sample", FULL, lambda room: sample(room, room.good.model, "--prompt", "b"), 300),
    Case("full disk, sample over", FULL, lambda room: sample(room, room.good.model, "--overwrite", "--out", room.file("mine.png", b"mine")), 300),
    Case("full disk, import", FULL, pth, LIMIT),
    Case("full disk, embed", FULL, lambda room: embed(room, room.good.encoder), LIMIT),
    Case("full disk, convert", FULL, lambda room: ("convert", room.good.model, "--quiet", "--out", room.out), LIMIT),
    Case("full disk, convert weights", FULL, small_tables, 1 << 14),
    Case("full disk, convert over", FULL, lambda room: ("convert", room.good.model, "--quiet", "--overwrite", "--out", room.copy(room.good.bundle)), LIMIT),
    Case("full disk, palettize", FULL, lambda room: ("palettize", room.good.bundle, "--bits", "4", "--quiet", "--out", room.out), 1 << 16),
    Case("full disk, palettize weights", FULL, lambda room: ("palettize", room.good.bundle, "--bits", "8", "--quiet", "--out", room.out), 300_000),
]  # fmt: skip

CASES = [*MODELS, *RUNS, *SAMPLING, *FEATURES, *BUNDLES, *DISK]
