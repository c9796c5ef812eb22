"""The Python API: one function for each task of the toolkit.

    import mdm_apple as mdm

    model = mdm.load("box:student")
    model("red heart", seed=7).save("heart.png")

Importing this module loads no framework; each function imports what it needs when called.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdm_apple.bundled_models import find_bundle, find_folder, find_model, require_format
from mdm_apple.config.choices import one_of
from mdm_apple.config.convert_options import ConvertOptions
from mdm_apple.config.model import MAX_SIDE, ModelConfig
from mdm_apple.config.presets import preset as preset_config
from mdm_apple.config.ranges import in_range
from mdm_apple.config.strict_json import read_config
from mdm_apple.config.types import (
    Background,
    Bits,
    ComputeUnits,
    Format,
    Precision,
    Say,
    Variant,
    WeightBits,
)
from mdm_apple.data.check import Check, check_folder, count_tokens
from mdm_apple.data.clips.check_clips import check_clips, holds_clips
from mdm_apple.data.clips.decode import Wanted
from mdm_apple.data.dataset import with_captions
from mdm_apple.data.from_object import PictureSource
from mdm_apple.data.open import open_dataset, wanted_clips
from mdm_apple.data.shards.index_files import IndexNote
from mdm_apple.data.shards.pack import SAMPLES_PER_SHARD, Packed
from mdm_apple.data.shards.pack import pack_shards as packed_shards
from mdm_apple.data.shards.plans import Order
from mdm_apple.data.shards.shard_pictures import BadPictures
from mdm_apple.data.shards.write_index import IndexOptions, write_index
from mdm_apple.errors import MdmError, require, require_installed
from mdm_apple.evaluation.evaluate import (
    Evaluation,
    EvaluationPlan,
    check_picture_model,
    side_to_open,
)
from mdm_apple.evaluation.evaluate import evaluate as evaluate_runtime
from mdm_apple.model import Model
from mdm_apple.open_model import (
    Backend,
    OpenOptions,
    TrainingBackend,
    default_backend,
    prepare,
)
from mdm_apple.sampling.inner_model import Level, inner_model, level_side
from mdm_apple.sampling.settings import SampleSettings
from mdm_apple.storage.files import occupied
from mdm_apple.storage.model_folder import load_model_config
from mdm_apple.text.encoder_folder import ENCODER_FOLDER, require_encoder
from mdm_apple.text.source import FrozenEncoder, find_text
from mdm_apple.text.tokenizer import Tokenizer
from mdm_apple.training.boot import BootBatch, BootConfig
from mdm_apple.training.distill import DistillJob, OpenBootLearner
from mdm_apple.training.distill import distill as run_distillation
from mdm_apple.training.learner import Learner, PictureLearner
from mdm_apple.training.run import OpenLearner, Run, run_job
from mdm_apple.training.run_folder import killed_unsaved
from mdm_apple.training.settings import TrainConfig
from mdm_apple.training.start import Job, Start, new_or_saved_tokenizer

if TYPE_CHECKING:
    from mdm_apple.config.types import TextEncoderChoice
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.compress.choose_bits import Chosen
    from mdm_apple.conversion.compress.palettize import PalettizeReport
    from mdm_apple.conversion.verify.verify import VerifyOptions, VerifyReport


@dataclass(frozen=True)
class Palettized:
    """A compressed bundle. chosen: the mixed bits, with the size and error that they promised."""

    bundle: Bundle
    report: PalettizeReport
    chosen: Chosen | None = None


def _silent(_: str) -> None:
    """Say nothing."""


def load(
    name: str | Path = "box:student",
    *,
    backend: Backend | None = None,
    precision: Precision | None = None,
    features: Path | None = None,
    text_encoder: Path | None = None,
    quantize: Bits | None = None,
    compute_units: ComputeUnits | None = None,
) -> Model:
    """Open a model for sampling.

    Args:
        name: a model folder, a bundle, `box:emoji`, `box:student` or `box:motion`.
        backend: None chooses by the machine and the model.
        precision: None means fp32 for a model folder, fp16 for a bundle.
        features: text features made by `mdm embed`. text_encoder: folder of a frozen encoder.
        quantize: bits of Linear layers, MLX only.
        compute_units: of a Mac, for a bundle on Core ML or Core AI; None means its manifest's or
            the system's choice.

    Raises MdmError with one sentence: what was wrong, what was expected, what to do.
    """
    options = OpenOptions(
        backend, precision, features, text_encoder, quantize, compute_units=compute_units
    )
    opening = prepare(find_model(name), options)
    return Model(opening, opening.load())


def train(
    data: str | Path | PictureSource,
    out: str | Path,
    *,
    steps: int | None = None,
    settings: TrainConfig | None = None,
    preset: str | None = None,
    config: ModelConfig | str | Path | None = None,
    init: str | Path | None = None,
    grow: str | Path | None = None,
    stop_at: Level | None = None,
    resume: bool = False,
    backend: TrainingBackend | None = None,
    captions: Sequence[str] | None = None,
    features: Path | None = None,
    text_encoder: Path | None = None,
    background: Background | None = None,
    skin_tones: bool | None = None,
    skip_bad: bool = False,
    clips_per_file: int | None = None,
    pictures: str | None = None,
    order: Order | None = None,
    bad_pictures: BadPictures | None = None,
    workers: int = 1,
    tensorboard: bool = False,
    overwrite: bool = False,
    say: Say = _silent,
    quiet: bool = True,
) -> Run:
    """Train a model and save it in the folder `out`.

    Args:
        data: "twemoji", "scenes", "motion", a folder of captioned pictures or clips, an index of
            shards, or an object with `__len__`, `caption(i)` and `picture(i, side)`.
        steps: total optimisation steps, with default settings; give `settings` to choose others.
        preset, config, init: what to train: a named model, a configuration or its file, or a model
            folder to start from. A resumed run has its own.
        grow: a smaller model to start with as the inner levels. stop_at: train only the levels up
            to this side, or of a model of clips such as "16x16".
        captions: train only on pictures with these. background: None is white. A resumed run has
            these two, `skin_tones`, `clips_per_file`, `pictures`, `order`, `bad_pictures`,
            `features` and `text_encoder` from its start.
        skip_bad: decode all pictures first, and leave out those that cannot be decoded; so does
            the run when it is resumed.
        clips_per_file: at most so many clips of each file of a folder; None for 8.
        pictures: "twemoji", "scenes" or a folder, seen beside clips by the levels of pictures.
        order: of an index of shards: "lanes" (None), "uniform", or "folder", that of a folder.
        bad_pictures: of an index: "refuse" (None), or "replace" by others of their shards.
        tensorboard: write event files beside metrics.jsonl.
        overwrite: replace another run in `out`; nothing is replaced otherwise.

    Raises MdmError.
    """
    job = Job(
        config=model_to_train(preset, config, init, stop_at, Path(out) if resume else None),
        train=_train_config(steps, settings),
        data=str(data) if isinstance(data, Path) else data,
        out=_free(out, overwrite or resume),
        resume=resume,
        init=None if init is None else find_folder(init).path,
        grow=None if grow is None else find_folder(grow).path,
        features=features,
        text_encoder=text_encoder,
        captions=None if captions is None else tuple(captions),
        background=background,
        skin_tones=skin_tones,
        skip_bad=skip_bad,
        clips_per_file=clips_per_file,
        pictures=pictures,
        order=order,
        bad_pictures=bad_pictures,
        workers=workers,
        tensorboard=tensorboard,
        quiet=quiet,
    )
    one_of("order", order, Order)
    one_of("bad_pictures", bad_pictures, BadPictures)
    if tensorboard:
        require("tensorboardX")
    return run_job(job, _picture_learner(_installed(backend)), say)


def check_data(
    folder: str | Path,
    *,
    side: int | None = None,
    preset: str | None = None,
    config: ModelConfig | str | Path | None = None,
    model: str | Path | None = None,
    captions: Sequence[str] | None = None,
    clips_per_file: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Check:
    """Decode every picture or clip of a folder once, and say what training would see.

    Args:
        side: pixels of the model's pictures, or of a frame of its clips. preset, config, model:
            the model instead, by which the captions are counted in tokens as well. Without any of
            these, no picture is too small, and clips are those of the preset `motion`.
        captions: check only the pictures with these.
        clips_per_file: at most so many clips of each file; None for 8.
        progress: called with the pictures done and their total.

    Raises MdmError for a folder that training would not understand. A bad picture is not an error;
    see `refusal()` of the check.
    """
    known = model_to_train(preset, config, model) if preset or config or model else None
    if known is not None and side is not None:
        raise MdmError("side: comes with the model; leave one of them out.")
    in_range("side", side, 1, MAX_SIDE, what="pixels")
    clips = holds_clips(Path(folder)) if known is None else known.frames > 1
    if clips:
        wanted = _clips_to_check(known or preset_config("motion"), side, clips_per_file)
        check = check_clips(Path(folder), wanted, captions, progress)
    elif clips_per_file is not None:
        raise MdmError("clips_per_file: applies to a folder of clips; leave it out for others.")
    else:
        side = side if known is None else known.side
        check = check_folder(Path(folder), side, captions, progress)
    if known is None or known.text is None or not check.good:
        return check
    tokenizer = _tokenizer(known, None if model is None else find_folder(model).path, check)
    if tokenizer is None:
        remark = "the tokenizer of this model's text encoder is not here; no caption was counted."
        return dataclasses.replace(check, remarks=[*check.remarks, remark])
    tokens = count_tokens(check.captions(), tokenizer, known.text.max_tokens)
    return dataclasses.replace(check, tokens=tokens)


def pack_shards(
    data: str | Path,
    out: str | Path,
    *,
    samples: int = SAMPLES_PER_SHARD,
    side: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Packed:
    """Pack a folder of captioned pictures, or "twemoji", into tar shards in the folder `out`.

    Args:
        samples: pictures in a shard. side: pixels of emoji.
        skip_bad: leave out pictures whose header is bad.
        progress: called with the pictures done and their total.

    Raises MdmError.
    """
    return packed_shards(
        str(data),
        Path(out),
        samples=samples,
        side=side,
        skip_bad=skip_bad,
        overwrite=overwrite,
        progress=progress,
    )


def index_shards(
    shards: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    captions: str = "txt",
    scores: Sequence[str] = (),
    skip_bad_shards: int = 0,
    where: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> IndexNote:
    """Read the headers of tar shards once, and make the folder `out` that `train` takes as data.

    Args:
        shards: folders of .tar files, patterns, text files of paths, or .tar files.
        captions: "txt", "json.FIELD" for a field of each sample's .json, or several with their
            shares: "txt:0.5,json.FIELD:0.5".
        scores: up to two fields of the .json whose numbers are kept with each sample.
        skip_bad_shards: so many damaged shards are left out; one more is refused.
        where: keep only samples such as "side >= 256 and pwatermark < 0.8"; of sides and scores.
        progress: called with the shards done and their total.

    Raises MdmError.
    """
    given = [shards] if isinstance(shards, (str, Path)) else shards
    options = IndexOptions(captions, tuple(scores), skip_bad_shards, where)
    return write_index([*map(str, given)], Path(out), options, overwrite, progress)


def _clips_to_check(config: ModelConfig, side: int | None, clips_per_file: int | None) -> Wanted:
    """The clips that a model takes. side: of a frame, in pixels; None for the model's own."""
    grid = math.isqrt(config.frames)
    canvas = config.side if side is None else grid * side
    return wanted_clips(canvas, config.frames, config.fps, clips_per_file)


def _tokenizer(config: ModelConfig, folder: Path | None, check: Check) -> Tokenizer | None:
    """The tokenizer that training would use; None for one that is not here."""
    if config.text is not None and config.text.trainable:
        return new_or_saved_tokenizer(config.text, folder, check.captions())
    if folder is None or not (folder / ENCODER_FOLDER).is_dir():
        return None
    found = find_text(folder, config)
    return found.tokenizer if isinstance(found, FrozenEncoder) else None


def _train_config(steps: int | None, settings: TrainConfig | None) -> TrainConfig:
    """The settings, or the default ones for a number of steps."""
    if settings is not None and steps is None:
        return settings
    if settings is None and steps is not None:
        return TrainConfig(steps=steps)
    raise MdmError("steps, settings: give one of them.")


def _free(out: str | Path, may_exist: bool) -> Path:
    """The folder for a run; refuses one with something in it."""
    folder = Path(out)
    if not may_exist and occupied(folder) and not killed_unsaved(folder):
        raise MdmError(f"{folder} exists; name another folder, or pass overwrite=True.")
    return folder


def _installed(backend: TrainingBackend | None) -> TrainingBackend:
    """The backend, or the machine's own; refuses one that is unknown or not installed."""
    chosen = backend or default_backend()
    one_of("backend", chosen, TrainingBackend)
    require_installed(chosen)
    return chosen


def _picture_learner(backend: TrainingBackend) -> OpenLearner:
    """Opens a learner. The framework is imported when all else was found to be in order."""

    def open_learner(
        config: ModelConfig, job: Job, tokenizer: Tokenizer | None, start: Start
    ) -> PictureLearner:
        if backend == "mlx":
            require("mlx.core")
            from mdm_apple.mlx.open_run import open_learner as opened
        else:
            require("torch")
            from mdm_apple.torch.open_run import open_learner as opened
        return opened(config, job, tokenizer, start)

    return open_learner


def _boot_learner(backend: TrainingBackend) -> OpenBootLearner:
    """The same for a student."""

    def open_learner(config: ModelConfig, job: DistillJob) -> Learner[BootBatch]:
        if backend == "mlx":
            require("mlx.core")
            from mdm_apple.mlx.boot import open_boot_learner as opened
        else:
            require("torch")
            from mdm_apple.torch.boot import open_boot_learner as opened
        return opened(config, job)

    return open_learner


def model_to_train(
    preset: str | None,
    config: ModelConfig | str | Path | None,
    init: str | Path | None,
    stop_at: Level | None = None,
    resumed: Path | None = None,
) -> ModelConfig:
    """The configuration from exactly one of the sources. Raises MdmError."""
    if resumed is not None and preset is None and config is None:
        return load_model_config(resumed)
    if init is not None:
        if preset or config or stop_at:
            raise MdmError(
                "init: brings its own configuration, so leave out preset, config and stop-at."
            )
        return load_model_config(find_folder(init).path)
    if (preset is None) == (config is None):
        raise MdmError("give either a preset or a config.")
    if isinstance(config, ModelConfig):
        chosen = config
    elif config is not None:
        chosen = read_config(ModelConfig, Path(config))
    else:
        chosen = preset_config(str(preset))
    if stop_at is None:
        return chosen
    return inner_model(chosen, level_side(chosen, stop_at))


def distill(
    teacher: str | Path,
    out: str | Path,
    *,
    steps: int | None = None,
    settings: TrainConfig | None = None,
    boot: BootConfig | None = None,
    backend: TrainingBackend | None = None,
    captions: Path | None = None,
    features: Path | None = None,
    text_encoder: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = _silent,
    quiet: bool = True,
) -> ModelConfig:
    """Teach a student to make a model's pictures in one or a few steps, and save it in `out`.

    Args:
        steps: total optimisation steps, with default settings; give `settings` to choose others.
        boot: where the student jumps from, and what it learns.
        captions: file of prompts, one per line; None takes the one beside the teacher.
        overwrite: replace another run in `out`; nothing is replaced otherwise.

    Raises MdmError.
    """
    job = DistillJob(
        find_folder(teacher).path,
        _free(out, overwrite or resume),
        _train_config(steps, settings),
        boot or BootConfig(),
        captions,
        features,
        text_encoder,
        resume,
        quiet,
    )
    return run_distillation(job, _boot_learner(_installed(backend)), say)


def convert(
    model: str | Path,
    out: str | Path,
    *,
    options: ConvertOptions | None = None,
    text_encoder: TextEncoderChoice = "auto",
    overwrite: bool = False,
    say: Say = _silent,
) -> Bundle:
    """Make a Core ML or Core AI bundle from a model folder. Raises MdmError.

    Args:
        options: layout, oldest system, kind of layers, largest package, format.
        text_encoder: "auto" packs one that is small or was trained with the model, "yes" any,
            "no" none.
    """
    named = find_model(model)
    if named.is_bundle:
        raise MdmError(f"{named}: is already a bundle; give the model folder that it came from.")
    if text_encoder == "yes":
        require_encoder(named.path, load_model_config(named.path).text)
    chosen = options or ConvertOptions()
    require_conversion(chosen.format)
    from mdm_apple.conversion.convert import convert
    from mdm_apple.conversion.layouts.text_encoder import missing_text
    from mdm_apple.conversion.source.model import load_source

    source = load_source(named.path, text_encoder)
    bundle = convert(source, Path(out), chosen, overwrite, say)
    missing = missing_text(source)
    if missing is not None:
        say(missing)
    return bundle


def palettize(
    bundle: Bundle | str | Path,
    out: str | Path,
    *,
    bits: WeightBits | int | None = None,
    group: int | None = None,
    variant: Variant | None = None,
    budget: float | None = None,
    least_db: float | None = None,
    model: str | Path | None = None,
    sensitivity: Path | None = None,
    prompts: int = 2,
    recipe: str | Path | None = None,
    protect_ends: bool = True,
    processes: int | None = None,
    max_package_mb: float | None = None,
    overwrite: bool = False,
    say: Say = _silent,
) -> Palettized:
    """Compress the weights of a bundle. Raises MdmError.

    Args: exactly one of the first five says how many bits.
        bits: one number for all weights.
        variant: mixed bits, with the size of 6, 4 or 3 bits everywhere.
        budget: mixed bits, in a bundle of at most so many megabytes.
        least_db: mixed bits, with at least this signal-to-noise ratio expected.
        recipe: a file with the bits of each weight.
        group: output channels that share a palette.
        model: the folder that the bundle came from, on which mixed bits are measured.
        sensitivity: file of these measurements: read if it exists, otherwise written.
        prompts: to measure on, 1 to 8.
        protect_ends: leave the first and last convolutions at 16 bits.
        processes: None chooses by the work. max_package_mb: split packages that are still larger.
    """
    if sum(asked is not None for asked in (bits, variant, budget, least_db, recipe)) != 1:
        raise MdmError("give one of bits, variant, budget, least_db and recipe.")
    one_of("variant", variant, Variant)
    mixed = bits is None and recipe is None
    if mixed and model is None and not (sensitivity and sensitivity.is_file()):
        raise MdmError(
            "model: mixed bits are measured on the model folder that the bundle was made from; "
            "name it."
        )
    folder = None if model is None else find_folder(model).path
    source, target = open_bundle(bundle), Path(out)
    from mdm_apple.conversion.compress import palettize as compress
    from mdm_apple.conversion.compress.choose_bits import recipe_for
    from mdm_apple.conversion.compress.recipe import read_recipe
    from mdm_apple.conversion.compress.sensitivity import known_or_measured
    from mdm_apple.conversion.compress.settings import Setting

    how = overwrite, say, processes, max_package_mb
    if bits is not None:
        setting = Setting.parse(str(bits), group)
        return Palettized(*compress.palettize(source, target, setting, protect_ends, *how))
    if recipe is not None:
        asked = read_recipe(Path(recipe))
        return Palettized(*compress.palettize_by_recipe(source, target, asked, *how))
    compress.refuse_compressed(source)
    measured = known_or_measured(
        sensitivity, source, folder, group, protect_ends, prompts, say, processes
    )
    chosen = recipe_for(measured, variant, budget, least_db)
    say(
        f"expected: {chosen.bytes / 1e6:.2f} MB, {chosen.bits:.2f} bits a weight, "
        f"predictions at {chosen.snr:.1f} dB SNR"
    )
    return Palettized(*compress.palettize_by_recipe(source, target, chosen.recipe, *how), chosen)


def verify(
    bundle: Bundle | str | Path,
    model: str | Path | None = None,
    options: VerifyOptions | None = None,
) -> VerifyReport:
    """Compare a bundle's results with its model's, or with the record inside the bundle.

    Raises MdmError. A failed comparison is not an error; see `passed` in the report.
    """
    folder = None if model is None else find_model(model).path
    opened = open_bundle(bundle)
    from mdm_apple.conversion.verify.verify import verify

    return verify(opened, folder, options)


def evaluate(
    model: Model | str | Path,
    data: str | Path | PictureSource,
    *,
    count: int = 512,
    seeds: Sequence[int] = (0,),
    settings: SampleSettings | None = None,
    captions: Sequence[str] | None = None,
    batch_size: int = 32,
) -> Evaluation:
    """Score a model's pictures against real ones: retrieval, cleanness, distances.

    Args:
        count: captions per seed. captions: use only pictures with these.

    Raises MdmError.
    """
    opened = model if isinstance(model, Model) else load(model)
    asked = settings or SampleSettings()
    check_picture_model(opened.config, asked.stop_at)
    plan = EvaluationPlan(
        opened.sampler_config(asked), count, tuple(seeds), asked.stop_at, batch_size
    )
    side = side_to_open(opened.config, asked.stop_at)
    dataset = open_dataset(str(data) if isinstance(data, Path) else data, side)
    if captions is not None:
        dataset = with_captions(dataset, captions)
    return evaluate_runtime(opened.runtime, dataset, plan)


def require_conversion(bundle_format: Format) -> None:
    """Refuse, with the pip command to run, if conversion to this format is not installed."""
    require_format(bundle_format, ", or leave out --format coreai")
    require("torch")
    require("jsonschema")


def open_bundle(bundle: Bundle | str | Path) -> Bundle:
    """Open a bundle by name and check it against its manifest. Raises MdmError."""
    if not isinstance(bundle, (str, Path)):
        return bundle
    named = find_bundle(bundle)
    require_format(named.format)
    require("torch")
    require("jsonschema")
    from mdm_apple.conversion.bundle.folder import Bundle

    return Bundle.open(named.path)
