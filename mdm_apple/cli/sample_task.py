"""What `mdm sample` is asked to make: its options, and the prompts and settings they mean."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mdm_apple.bundled_models import find_model
from mdm_apple.cli.clip_request import ClipRequest
from mdm_apple.cli.picture_files import begun_seed
from mdm_apple.cli.picture_request import unused
from mdm_apple.cli.prompts_file import every_picture, read_prompts
from mdm_apple.config.model import Threshold
from mdm_apple.config.types import Bits, ComputeUnits, Precision
from mdm_apple.diffusion.schedule import Spacing
from mdm_apple.errors import MdmError
from mdm_apple.open_model import Backend, Opening, OpenOptions, prepare
from mdm_apple.sampling.between import arc, between
from mdm_apple.sampling.generate import Prompt, random_seed
from mdm_apple.sampling.inner_model import AskedLevel
from mdm_apple.sampling.pictures import Recipe
from mdm_apple.sampling.settings import SampleSettings
from mdm_apple.sampling.walk import SamplerConfig, SamplerKind
from mdm_apple.text.captions import as_text

BITS: dict[str, Bits] = {"8": 8, "4": 4}
AMOUNT, BETWEEN = 0.3, 9  # of --vary, and pictures of --between, by default


@dataclass(frozen=True)
class SampleRequest:
    """The options of `mdm sample`; None: not given."""

    words: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    model: str | None
    negative: str | None
    steps: int | None
    full_table: bool
    sampler: SamplerKind | None
    eta: float | None
    guidance: float | None
    threshold: Threshold | None
    spacing: Spacing | None
    stop_at: AskedLevel | None
    frames: int | None
    fps: float | None
    first_frame: Path | None
    last_frame: Path | None
    sheet: Path | None
    image: Path | None
    strength: float | None
    mask: Path | None
    extend: str | None
    harmonize: int | None
    background: str | None
    vary: Path | None
    amount: float | None
    count: int | None
    between: tuple[str, str] | None
    to_seed: int | None
    prompts_file: Path | None
    seed_range: range | None
    previews: bool
    preview_every: int
    batch_size: int
    like: Path | None
    backend: Backend | None
    compute_units: ComputeUnits | None
    precision: Precision | None
    quantize: Literal["8", "4"] | None
    low_memory: bool
    memory_limit: float | None
    features: Path | None
    text_encoder: Path | None
    out: Path | None
    overwrite: bool


@dataclass(frozen=True)
class Task:
    """What to make and with which model.

    remark: why this model, if the caller named none. each: the settings of each prompt.
    """

    model: str
    remark: str | None
    prompts: list[Prompt]
    settings: SampleSettings
    each: list[SampleSettings]
    precision: Precision | None
    quantize: Bits | None


def task_of(request: SampleRequest, like: Recipe | None) -> Task:
    """Prompts with seeds, settings and model from the options, or from the picture of --like.

    like: the recipe of --like or --vary. Raises MdmError.
    """
    texts = tuple(map(as_text, request.words + request.prompts))
    seeds, negative = _seeds(request), as_text(request.negative or "")
    _refuse_unused(request, texts)
    settings = SampleSettings(
        request.sampler,
        request.steps,
        request.full_table,
        request.eta,
        request.guidance,
        request.threshold,
        request.spacing,
    )
    precision = request.precision
    quantize = None if request.quantize is None else BITS[request.quantize]
    each = list[SampleSettings]()
    if like is not None:
        if texts or (seeds and request.vary is None):
            raise MdmError("like: brings its own prompt and seed, so leave out PROMPT and --seed.")
        negative = like.negative if request.negative is None else negative
        settings = _varied(like, settings)
        precision, quantize = precision or like.precision, quantize or like.quantize
        prompts = _repeated(request, like, negative, seeds)
    elif request.between is not None:
        one, other = map(as_text, request.between)
        seed = seeds[0] if seeds else random_seed()
        frames = BETWEEN if request.frames is None else request.frames
        prompts = between(one, other, frames, seed, request.to_seed, negative)
    elif request.prompts_file is not None:
        lines = read_prompts(request.prompts_file)
        prompts, each = every_picture(lines, seeds, negative, settings)
    else:
        prompts = _asked(request, texts, seeds, negative)
    each = each or [settings] * len(prompts)
    model, remark = _default_model(request, each, prompts, like)
    if request.model is not None:
        model, remark = request.model, None
    return Task(model, remark, prompts, settings, each, precision, quantize)


def _asked(
    request: SampleRequest, texts: tuple[str, ...], seeds: tuple[int, ...], negative: str
) -> list[Prompt]:
    """Every prompt of the command line with every seed."""
    if not texts:
        raise MdmError('prompt: say what to draw, as in mdm sample "red heart", or give --like.')
    if not seeds:
        begun = None if request.overwrite else begun_seed(request.out, texts, negative)
        seeds = (random_seed() if begun is None else begun,)
    return [Prompt(text, seed, negative) for text in texts for seed in seeds]


def _repeated(
    request: SampleRequest, like: Recipe, negative: str, seeds: tuple[int, ...]
) -> list[Prompt]:
    """The prompt of a picture again, or varied towards other seeds."""
    if request.vary is None:
        own = Prompt(like.prompt, like.seed, negative, like.to_seed, like.to_prompt)
        return [dataclasses.replace(own, share=like.share or 0.0)]
    amount = AMOUNT if request.amount is None else request.amount
    count = request.count or 1
    first = random_seed(count) if not seeds else seeds[0]
    targets = seeds if len(seeds) > 1 else range(first, first + count)
    return [dataclasses.replace(arc(like, amount, t), negative=negative) for t in targets]


def _seeds(request: SampleRequest) -> tuple[int, ...]:
    if request.seed_range is None:
        return request.seeds
    if request.seeds:
        raise MdmError("seeds: --seed and --seeds say the same; give one of them.")
    return tuple(request.seed_range)


def _refuse_unused(request: SampleRequest, texts: tuple[str, ...]) -> None:
    """Refuse options that have no use together. Raises MdmError."""
    for name in ("amount", "count"):
        if request.vary is None:
            unused(name, "vary", getattr(request, name))
    if request.between is None:
        unused("to-seed", "between", request.to_seed)
    ways = {
        "like": request.like,
        "vary": request.vary,
        "between": request.between,
        "prompts": request.prompts_file,
    }
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) > 1:
        raise MdmError(f"{chosen[1]}: brings its own prompts, and so does --{chosen[0]}; give one.")
    if chosen and chosen != ["like"] and texts:
        raise MdmError(f"{chosen[0]}: brings its own prompts, so leave out PROMPT.")
    if request.between is not None and len(_seeds(request)) > 1:
        raise MdmError("between: begins with one seed; give --to-seed for the other end.")
    if request.prompts_file is not None and request.out is None:
        raise MdmError("out: say which folder the pictures go into, such as --out pictures.")
    if request.prompts_file is not None and request.image is not None:
        raise MdmError("image: goes with prompts of the command line; leave out --prompts.")


def _varied(like: Recipe, asked: SampleSettings) -> SampleSettings:
    """The settings of a picture, overridden by the options given with --like."""
    whole_table = asked.full_table or (asked.steps is None and like.steps is None)
    return SampleSettings(
        asked.sampler or like.sampler,
        asked.steps or like.steps,
        whole_table,
        like.eta if asked.eta is None else asked.eta,
        like.guidance if asked.guidance is None else asked.guidance,
        asked.threshold or like.threshold,
        asked.spacing or like.grid,
    )


def at_level(task: Task, stop_at: int | None) -> Task:
    """The task, stopped at a side."""

    def stopped(settings: SampleSettings) -> SampleSettings:
        return dataclasses.replace(settings, stop_at=stop_at)

    each = [stopped(settings) for settings in task.each]
    return dataclasses.replace(task, settings=stopped(task.settings), each=each)


def clips_of(request: SampleRequest) -> ClipRequest:
    """The options for clips; the frames of --between are pictures."""
    frames = None if request.between is not None else request.frames
    return ClipRequest(frames, request.fps, request.sheet, request.first_frame, request.last_frame)


def _default_model(
    request: SampleRequest,
    each: list[SampleSettings],
    prompts: list[Prompt],
    like: Recipe | None,
) -> tuple[str, str | None]:
    """The bundled model that can do what is asked, and the reason if it is not the student."""
    if like is not None:
        student = all(settings.sampler == "student" for settings in each)
        return ("box:student" if student else "box:emoji"), None
    reasons = {
        "takes no --negative": any(prompt.negative for prompt in prompts),
        "draws in one step, which leaves nothing to preview": request.previews,
        "starts from an --image at a few strengths only": request.image is not None,
        "takes no other --sampler": any(s.sampler not in (None, "student") for s in each),
        "takes no --full-table": any(s.full_table for s in each),
        "takes no --eta": any(s.eta is not None for s in each),
        "takes no --threshold": any(s.threshold is not None for s in each),
        "takes no --spacing": any(s.spacing is not None for s in each),
    }
    true = [reason for reason, given in reasons.items() if given]
    if any(s.sampler == "student" for s in each) or not true:
        return "box:student", None
    return "box:emoji", f"model: box:emoji, because box:student {true[0]}."


def opening_of(request: SampleRequest, task: Task) -> OpenOptions:
    """How to open the model."""
    captions = tuple(dict.fromkeys(caption for p in task.prompts for caption in p.texts))
    return OpenOptions(
        request.backend,
        task.precision,
        request.features,
        request.text_encoder,
        task.quantize,
        captions if request.low_memory else None,
        request.memory_limit,
        request.compute_units,
    )


def checked(opening: Opening, task: Task, by_default: bool) -> list[SamplerConfig]:
    """The sampler of each. A refusal of the default model names the other one, if that can."""
    try:
        return _samplers(opening, task)
    except MdmError as error:
        if by_default and opening.config.distilled is not None and _emoji_can(task):
            raise MdmError(f"{str(error).rstrip('.')}, or use --model box:emoji.") from None
        raise


def _emoji_can(task: Task) -> bool:
    try:
        _samplers(prepare(find_model("box:emoji")), task)
    except MdmError:
        return False
    return True


def _samplers(opening: Opening, task: Task) -> list[SamplerConfig]:
    known = dict[SampleSettings, SamplerConfig]()
    for settings in task.each:
        if settings not in known:
            known[settings] = opening.check(settings, task.prompts)
    return [known[settings] for settings in task.each]
