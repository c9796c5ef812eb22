"""Everything against the original implementation: networks, schedules, losses, training, samplers.

Each fixture is one test and one printed line with its worst error. MDM_GOLDEN adds folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backends import Backend, predict
from golden_fixtures import KINDS, Fixture, find_fixtures, rounded_schedule
from tolerances import (
    BASE_SCHEDULE,
    FLOAT64_TABLE,
    FORWARD,
    LOSS,
    SHIFTED_SCHEDULE,
    TRAIN_GRAD_FLOOR,
    TRAIN_MOVED,
    TRAIN_SCALARS,
    TRAJECTORY,
    VDM_WEIGHTS,
)

from mdm_apple.apple_checkpoints.fields import diffusion_config_from_apple
from mdm_apple.config.model import DiffusionConfig, ModelConfig, TextConfig
from mdm_apple.data.batches import Batch
from mdm_apple.diffusion.arithmetic import guide
from mdm_apple.diffusion.loss import batch_loss, nested_loss
from mdm_apple.diffusion.prediction import image_scale
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.diffusion.schedule import (
    Schedule,
    Table,
    base_table,
    build_schedule,
    shift,
    timestep_grid,
    vdm_weights,
)
from mdm_apple.sampling.walk import SamplerConfig, sample
from mdm_apple.training.learner import Snapshot
from mdm_apple.training.settings import TrainConfig, learning_rate

FIXTURES = find_fixtures()
MOMENT = "exp_avg_sq."  # of Adam: its running mean of squared gradients


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(f, id=f.path.stem) for f in FIXTURES if f.kind == kind]


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest reference value."""
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def mixed(got: np.ndarray, wanted: np.ndarray) -> float:
    """Smallest tolerance that passes both as absolute and as relative part of one bound."""
    assert got.shape == wanted.shape
    return float((np.abs(got - wanted) / (1 + np.abs(wanted))).max())


Report = Callable[[Fixture, str, float, float], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Prints the line of a fixture past pytest's capture, then holds its error to the bound."""

    def say(fixture: Fixture, backend: str, error: float, bound: float) -> None:
        name = f"{fixture.kind:9} {fixture.path.stem:32} {backend:5}"
        with capsys.disabled():
            print(f"\ngolden {name} worst {error:.2e} of {bound:.0e}", end="")
        assert error <= bound

    return say


def test_every_kind_of_fixture_is_present(capsys: pytest.CaptureFixture[str]) -> None:
    counts = Counter(f.kind for f in FIXTURES)
    with capsys.disabled():
        print("\ngolden fixtures: " + ", ".join(f"{kind} {counts[kind]}" for kind in KINDS))
    assert set(counts) == set(KINDS)


# --- networks ---------------------------------------------------------------------------------


def forward_error(fixture: Fixture, backend: Backend, state: dict[str, np.ndarray]) -> float:
    net = backend.network(fixture.unet, state)
    worst = 0.0
    for call in range(len(fixture.info["calls"])):
        given = fixture.inputs(f"call{call}.in.")
        levels = sum(k.startswith("x.") for k in given)
        out = predict(
            backend,
            net,
            [backend.image(given[f"x.{i}"]) for i in range(levels)],
            given["times"],
            given.get("lm_outputs"),
            given.get("lm_mask"),
            {k[len("micro.") :]: v for k, v in given.items() if k.startswith("micro.")},
        )
        for i in range(levels):
            wanted = fixture.tensors[f"call{call}.out.{i}"]
            worst = max(worst, relative(backend.numpy(out[i]), wanted))
    return worst


@pytest.mark.parametrize("fixture", of_kind("model"))
def test_network_matches_the_original(fixture: Fixture, backend: Backend, report: Report) -> None:
    error = forward_error(fixture, backend, fixture.state())
    report(fixture, backend.name, error, FORWARD)


@pytest.mark.parametrize("fixture", of_kind("model"))
def test_network_with_one_perturbed_weight_does_not_match(
    fixture: Fixture, backend: Backend
) -> None:
    state = fixture.state()
    state["conv_in.weight"][0, 0, 1, 1] += 0.05
    assert forward_error(fixture, backend, state) > 10 * FORWARD


WITH_TEXT = [p for p in of_kind("model") if p.values[0].unet.text_width]


def text_errors(
    fixture: Fixture, backend: Backend, state: dict[str, np.ndarray]
) -> dict[str, float]:
    """Pooled text and features: the middle of the network, not only its end."""
    net = backend.network(fixture.unet, state)
    errors = {"pooled": 0.0, "features": 0.0}
    for call in range(len(fixture.info["calls"])):
        given, middle = fixture.inputs(f"call{call}.in."), fixture.inputs(f"call{call}.mid.")
        mask = given.get("lm_mask")
        pooled, features, _ = net.encode_text(
            backend.array(given["lm_outputs"]), None if mask is None else backend.array(mask)
        )
        for name, got, wanted in (
            ("pooled", pooled, middle["cond_emb"]),
            ("features", features, middle["conditioning"]),
        ):
            errors[name] = max(errors[name], relative(backend.numpy(got), wanted))
    return errors


@pytest.mark.parametrize("fixture", WITH_TEXT)
def test_text_path_matches_the_original(fixture: Fixture, backend: Backend) -> None:
    assert max(text_errors(fixture, backend, fixture.state()).values()) <= FORWARD


@pytest.mark.parametrize("fixture", WITH_TEXT)
def test_text_path_with_one_perturbed_weight_does_not_match(
    fixture: Fixture, backend: Backend
) -> None:
    """The last layer of the pooled text, and the first of the features where there is one."""
    for name, part in (("cond_emb.weight", "pooled"), ("lm_proj.weight", "features")):
        state = fixture.state()
        owners = [key for key in state if key.endswith(name)]
        assert owners or part == "features"
        for key in owners:
            state[key][1, 2] += 0.05
        if owners:
            assert text_errors(fixture, backend, state)[part] > 10 * FORWARD


@pytest.mark.parametrize("fixture", [f for kind in ("model", "weights") for f in of_kind(kind)])
def test_scales_match_the_original(fixture: Fixture) -> None:
    assert fixture.unet.scales == (*(fixture.info["nest_ratio"] or []), 1)


# --- schedules --------------------------------------------------------------------------------


def base_of(run: dict[str, Any]) -> Table:
    settings = {k: v for k, v in run.items() if k not in ("prefix", "timesteps")}
    fields = {"sampler_config": {"prediction_type": "V_PREDICTION", **settings}}
    return base_table(diffusion_config_from_apple(fields, 1).schedule)


def schedule_errors(fixture: Fixture, run: dict[str, Any], base: Table) -> dict[str, float]:
    """Per table, the worst error over its tolerance."""
    wanted = fixture.inputs(f"{run['prefix']}.")
    vdm = np.abs(vdm_weights(base) / wanted["vdm_loss_weights"] - 1)
    errors = {
        "base": float(np.abs(base - wanted["gammas"]).max()) / BASE_SCHEDULE,
        "vdm": float(vdm.max()) / VDM_WEIGHTS,
    }
    for name, table in wanted.items():
        if name.startswith("shifted."):
            got = shift(base, *shift_named(name))
            errors[name] = float(np.abs(got - table).max()) / SHIFTED_SCHEDULE
    return errors


def shift_named(name: str) -> tuple[int, float]:
    """Scale and power of a table, `shifted.pPOWER.sSCALE`."""
    power, scale = name.removeprefix("shifted.p").rsplit(".s", 1)
    return int(scale), float(power)


def test_the_power_of_a_shift_may_be_a_fraction() -> None:
    assert shift_named("shifted.p0.5.s8") == (8, 0.5)
    assert shift_named("shifted.p2.s16") == (16, 2.0)


@pytest.mark.parametrize("fixture", of_kind("schedules"))
def test_schedules_match_the_original(fixture: Fixture, report: Report) -> None:
    worst = 0.0
    for run in fixture.info["runs"]:
        base = base_of(run)
        worst = max(worst, *schedule_errors(fixture, run, base).values())
        for count, grid in run["timesteps"].items():
            assert timestep_grid(Schedule(base, (base,)), int(count)) == grid
    report(fixture, "numpy", worst, 1.0)


@pytest.mark.parametrize("fixture", of_kind("schedules"))
def test_schedules_with_one_perturbed_beta_do_not_match(fixture: Fixture) -> None:
    """The beta at a tenth of the way is larger: alpha_bar is less from there on."""
    for run in fixture.info["runs"]:
        base = base_of(run)
        base[len(base) // 10 :] *= 1 - 5e-3
        errors = schedule_errors(fixture, run, base)
        assert min(errors.values()) > 10, (run, errors)


def perturbed(schedule: Schedule) -> Schedule:
    """One beta of the first steps is larger in every table: alpha_bar is less from there on."""

    def change(table: Table) -> Table:
        return np.concatenate([table[:3], table[3:] * (1 - 0.02)])

    return Schedule(change(schedule.base), tuple(map(change, schedule.tables)))


# --- losses -----------------------------------------------------------------------------------


def loss_errors(
    fixture: Fixture,
    backend: Backend,
    schedule: Schedule,
    config: DiffusionConfig,
    state: dict[str, np.ndarray],
) -> dict[str, float]:
    unet, given = fixture.weights.unet, fixture.inputs("in.")
    net = backend.network(unet, state)
    x0 = build_pyramid(backend.image(given["images"]), unet, backend.ops)
    alpha_bar = [
        backend.array(table[given["time"] + 1].astype(np.float32)[:, None, None, None])
        for table in schedule.tables
    ]
    micros = {"scale": given["scale"]} if "scale" in given else {}
    parts = nested_loss(
        lambda x_t: predict(
            backend, net, x_t, given["time"], given["lm_outputs"], given.get("lm_mask"), micros
        ),
        x0,
        [backend.image(given[f"eps.{i}"]) for i in range(len(x0))],
        alpha_bar,
        config,
        unet.scales,
        backend.ops,
    )
    errors = {}
    for name in ("x_t", "model_out", "pred", "target", "mse"):
        for i, value in enumerate(getattr(parts, name)):
            errors[f"{name}.{i}"] = relative(
                backend.numpy(value), fixture.tensors[f"out.{name}.{i}"]
            )
    errors["loss_per_sample"] = relative(
        backend.numpy(parts.per_sample), fixture.tensors["out.loss_per_sample"]
    )
    weights = None
    if config.loss_weighting == "vdm":
        weights = backend.array(fixture.tensors["out.vdm_weights"])
    scalar = backend.numpy(batch_loss(parts.per_sample, weights))
    errors["loss_scalar"] = relative(
        scalar.reshape(()), fixture.tensors["out.loss_scalar"].reshape(())
    )
    return errors


@pytest.mark.parametrize("fixture", of_kind("loss"))
def test_loss_matches_the_original(fixture: Fixture, backend: Backend, report: Report) -> None:
    scales = fixture.weights.unet.scales
    config = fixture.diffusion(len(scales))
    state = fixture.weights.state()
    errors = loss_errors(fixture, backend, rounded_schedule(config, scales), config, state)
    report(fixture, backend.name, max(errors.values()), LOSS)
    exact = loss_errors(fixture, backend, build_schedule(config.schedule, scales), config, state)
    assert max(exact.values()) <= FLOAT64_TABLE, exact


@pytest.mark.parametrize("fixture", of_kind("loss"))
def test_loss_with_one_perturbed_weight_does_not_match(fixture: Fixture, backend: Backend) -> None:
    scales = fixture.weights.unet.scales
    config, state = fixture.diffusion(len(scales)), fixture.weights.state()
    state["conv_in.weight"][0, 0, 1, 1] += 0.5
    errors = loss_errors(fixture, backend, rounded_schedule(config, scales), config, state)
    assert errors["model_out.0"] > 10 * LOSS
    # at high noise little of an error in v is one in eps, so not every part need show it so clearly
    later = ("pred.0", "mse.0", "loss_per_sample", "loss_scalar")
    assert max(errors[name] for name in later) > 10 * LOSS, errors
    assert errors["x_t.0"] <= LOSS  # made before the network is asked


@pytest.mark.parametrize("fixture", of_kind("loss"))
def test_loss_with_one_perturbed_beta_does_not_match(fixture: Fixture, backend: Backend) -> None:
    scales = fixture.weights.unet.scales
    config = fixture.diffusion(len(scales))
    schedule = perturbed(rounded_schedule(config, scales))
    errors = loss_errors(fixture, backend, schedule, config, fixture.weights.state())
    for level in range(len(scales)):
        assert errors[f"x_t.{level}"] > 10 * LOSS, errors


# --- training ---------------------------------------------------------------------------------


def train_batch(given: dict[str, np.ndarray]) -> Batch:
    rows = len(given["time"])
    return Batch(
        images=given["images"],
        captions=[""] * rows,
        micros={"scale": given["scale"]} if "scale" in given else {},
        indices=np.arange(rows),
        times=given["time"],
        noise=[given["eps.0"] if "eps.0" in given else given["eps"]],
    )


def run_training(
    fixture: Fixture, backend: Backend, state: dict[str, np.ndarray]
) -> tuple[Snapshot, float, list[dict[str, np.ndarray]]]:
    """Last snapshot, worst relative error of the scalars, and the state of Adam per step."""
    info = fixture.info
    train = TrainConfig(
        steps=info["steps"],
        lr=info["lr"],
        warmup_steps=info["warmup_steps"],
        beta2=0.999,
        clip_norm=info["gradient_clip_norm"],
        ema_decay=info["ema_decay"],
        ema_ramp=False,
        ema_warmup_steps=info["ema_warmup"],
    )
    unet = fixture.unet
    side = fixture.tensors["step0.in.images"].shape[-1]
    config = ModelConfig(unet, side, fixture.diffusion(1), TextConfig(max_tokens=64))
    text: list[tuple[np.ndarray, np.ndarray]] = []
    learner = backend.learner(config, train, state, lambda: text[-1])
    worst, means = 0.0, []
    for k in range(info["steps"]):
        given = fixture.inputs(f"step{k}.in.")
        text.append((given["lm_outputs"], given["lm_mask"]))
        metrics = learner.step(train_batch(given), k)
        assert learning_rate(train, k) == pytest.approx(info["lr_per_step"][k], rel=1e-9)
        for got, name in ((metrics.loss, "loss"), (metrics.grad_norm, "grad_norm")):
            wanted = info[f"{name}_per_step"][k]
            worst = max(worst, abs(got - wanted) / abs(wanted))
        means.append(learner.snapshot().optimizer)
    return learner.snapshot(), worst, means


def weight_error(
    fixture: Fixture, snapshot: Snapshot, means: list[dict[str, np.ndarray]]
) -> tuple[float, float]:
    """Worst error where the gradient is real, and where it is rounding noise.

    Of the sum of the learning rates; a weight is stored to half a unit in its last place per step.
    """
    assert snapshot.ema is not None
    moved, steps = sum(fixture.info["lr_per_step"]), fixture.info["steps"]
    largest = [max(v.max() for k, v in step.items() if k.startswith(MOMENT)) for step in means]
    real, noise = 0.0, 0.0
    for kind, weights in (("final.", snapshot.weights), ("ema.", snapshot.ema)):
        for name, wanted in fixture.inputs(kind).items():
            stored = steps * np.spacing(np.abs(wanted))
            error = np.maximum(np.abs(weights[name] - wanted) - stored, 0) / moved
            held = np.ones(wanted.shape, bool)
            for step, most in zip(means, largest, strict=True):  # moments are squares of gradients
                held &= step[f"{MOMENT}{name}"] >= TRAIN_GRAD_FLOOR**2 * most
            real = max(real, float(error[held].max(initial=0)))
            noise = max(noise, float(error[~held].max(initial=0)))
    return real, noise


@pytest.mark.parametrize("fixture", of_kind("train"))
def test_training_matches_the_original(fixture: Fixture, backend: Backend, report: Report) -> None:
    snapshot, scalars, means = run_training(fixture, backend, fixture.state("init."))
    real, noise = weight_error(fixture, snapshot, means)
    assert scalars <= TRAIN_SCALARS
    assert noise <= 2
    report(fixture, backend.name, real, TRAIN_MOVED)


@pytest.mark.parametrize("fixture", of_kind("train"))
def test_training_from_one_perturbed_weight_does_not_match(
    fixture: Fixture, backend: Backend
) -> None:
    state = fixture.state("init.")
    state["conv_in.weight"][0, 0, 1, 1] += 0.05
    snapshot, _, means = run_training(fixture, backend, state)
    assert weight_error(fixture, snapshot, means)[0] > 10 * TRAIN_MOVED


# --- samplers ---------------------------------------------------------------------------------


def sampler_config(fixture: Fixture) -> SamplerConfig:
    asked = fixture.info["sample_kwargs"]
    eta = asked.get("ddim_eta")
    return SamplerConfig(
        kind="ddpm" if eta is None else "ddim",
        num_steps=asked["num_inference_steps"] if asked.get("resample_steps") else None,
        eta=eta or 0.0,
        guidance_scale=asked.get("guidance_scale", 1.0),
    )


def trajectory_error(
    fixture: Fixture, backend: Backend, schedule: Schedule, state: dict[str, np.ndarray]
) -> float:
    unet, given = fixture.weights.unet, fixture.inputs("in.")
    config, sampler = fixture.diffusion(len(unet.levels)), sampler_config(fixture)
    net = backend.network(unet, state)
    levels, rows = range(len(unet.levels)), fixture.info["batch"]
    guided = sampler.guidance_scale != 1
    micros = {"scale": given["scale"]} if "scale" in given else {}
    times_seen: list[int] = []

    def denoise(x_t: list[Any], time: int) -> list[Any]:
        times_seen.append(time)
        times = np.full(len(given["lm_outputs"]), time)
        doubled = [
            backend.image(np.concatenate([backend.numpy(x)] * (2 if guided else 1))) for x in x_t
        ]
        out = predict(
            backend, net, doubled, times, given["lm_outputs"], given.get("lm_mask"), micros
        )
        if guided:  # the unconditional half comes first
            out = [guide(o[rows:], o[:rows], sampler.guidance_scale) for o in out]
        return out

    drawn = iter(range(10**6))

    def draw() -> list[Any]:
        step, zero = next(drawn), given
        return [
            backend.image(given.get(f"noise.step{step}.{i}", np.zeros_like(zero[f"init.{i}"])))
            for i in levels
        ]

    steps = sample(
        denoise,
        [backend.image(given[f"init.{i}"]) for i in levels],
        draw,
        schedule,
        config,
        sampler,
        unet.scales,
        backend.ops,
    )
    worst, last = 0.0, None
    for step in steps:
        for i in levels:
            wanted = fixture.inputs(f"traj.step{step.index}.")
            pairs = [
                (step.x_t[i], f"x_t.{i}"),
                (step.prediction[i], f"guided_pred.{i}"),
                (step.x0[i], f"x0.{i}"),
                (step.x_next[i], f"x_next.{i}"),
            ]
            for value, name in pairs:
                if name in wanted:
                    worst = max(worst, mixed(backend.numpy(value), wanted[name]))
        last = step
    assert last is not None
    assert times_seen == fixture.info["model_times_per_step"]
    signal = image_scale(config, unet.scales, 0)
    picture = np.clip(backend.numpy(last.x_next[0]) * signal, -1, 1)
    wanted = fixture.tensors["out.yield-1.x_t"]
    side = picture.shape[-1]
    return max(worst, mixed(picture, wanted[..., wanted.shape[-1] - side :]))


@pytest.mark.parametrize("fixture", of_kind("sampler"))
def test_trajectory_matches_the_original(
    fixture: Fixture, backend: Backend, report: Report
) -> None:
    scales = fixture.weights.unet.scales
    config = fixture.diffusion(len(scales))
    state = fixture.weights.state()
    error = trajectory_error(fixture, backend, rounded_schedule(config, scales), state)
    report(fixture, backend.name, error, TRAJECTORY[backend.name])
    exact = trajectory_error(fixture, backend, build_schedule(config.schedule, scales), state)
    assert exact <= FLOAT64_TABLE


@pytest.mark.parametrize("fixture", of_kind("sampler"))
def test_trajectory_with_one_perturbed_weight_does_not_match(
    fixture: Fixture, backend: Backend
) -> None:
    scales = fixture.weights.unet.scales
    schedule = rounded_schedule(fixture.diffusion(len(scales)), scales)
    state = fixture.weights.state()
    state["conv_in.weight"][0, 0, 1, 1] += 0.5
    error = trajectory_error(fixture, backend, schedule, state)
    assert error > 10 * TRAJECTORY[backend.name]


@pytest.mark.parametrize("fixture", of_kind("sampler"))
def test_trajectory_with_one_perturbed_beta_does_not_match(
    fixture: Fixture, backend: Backend
) -> None:
    scales = fixture.weights.unet.scales
    schedule = perturbed(rounded_schedule(fixture.diffusion(len(scales)), scales))
    error = trajectory_error(fixture, backend, schedule, fixture.weights.state())
    assert error > 10 * TRAJECTORY[backend.name]
