"""The pictures of a run: bad ones are skipped, mended or removed, and all else stays exact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS, Backend
from small import CAPTIONS, trainable_model

from mdm_apple.data.batches import Batch, BatchPlan
from mdm_apple.data.dataset import DataError
from mdm_apple.errors import MdmError
from mdm_apple.storage.model_folder import load_model_config, load_training_meta
from mdm_apple.training.chosen_data import ChosenData
from mdm_apple.training.learner import StepMetrics
from mdm_apple.training.picture_record import PICTURES
from mdm_apple.training.run import run_job
from mdm_apple.training.settings import TrainConfig
from mdm_apple.training.start import Job

SETTINGS = TrainConfig(
    steps=16,
    batch_size=1,
    warmup_steps=2,
    caption_dropout=0.0,
    save_every=1000,
    log_every=1000,
    seed=3,
)
ORDER = [int(BatchPlan(len(CAPTIONS), 1, SETTINGS.seed).indices(step)[0]) for step in range(32)]
BAD_AT = 5  # the step that meets the bad picture, and so the steps done before it
BAD, LATER, EARLIER = ORDER[BAD_AT], ORDER[BAD_AT + 4], ORDER[BAD_AT - 2]


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "data"))


def png(data: Path, number: int) -> Path:
    return data / f"{number:02d}.png"


def spoil(data: Path, number: int) -> bytes:
    """Cut a picture off in its middle; returns the whole one."""
    whole = png(data, number).read_bytes()
    png(data, number).write_bytes(whole[:-30])
    return whole


def job(out: Path, data: Path, **changes: Any) -> Job:
    return Job(trainable_model(), SETTINGS, str(data), out, quiet=True, **changes)


def run(backend: Backend, task: Job) -> tuple[list[str], list[str]]:
    """Run a job: the remarks, and the captions that its steps saw."""
    said, seen = list[str](), list[str]()

    def opened(*arguments: Any) -> Any:
        learner = backend.open_learner(*arguments)
        step = learner.step

        def recorded(batch: Batch, index: int) -> StepMetrics:
            seen.extend(batch.captions)
            return step(batch, index)

        learner.step = recorded
        return learner

    if task.resume:  # as the command does
        task = dataclasses.replace(task, config=load_model_config(task.out))
    run_job(task, opened, said.append)
    return said, seen


def refusal(backend: Backend, task: Job) -> str:
    with pytest.raises(MdmError) as caught:
        run(backend, task)
    return str(caught.value)


def weights(out: Path) -> dict[str, Any]:
    return {
        name: entry["sha256"]
        for name, entry in json.loads((out / "hashes.json").read_text()).items()
        if name.endswith(".safetensors")
    }


def stopped(backend: Backend, out: Path, data: Path) -> bytes:
    """A run that a bad picture has ended; returns what the picture was before."""
    whole = spoil(data, BAD)
    message = refusal(backend, job(out, data))
    assert f"{BAD:02d}.png: cannot be read" in message
    assert f"--skip-bad, and go on with --resume; `mdm data check {data}`" in message
    assert load_training_meta(out)["step"] == BAD_AT
    return whole


def test_a_mended_picture_is_as_if_it_had_never_been_bad(
    backend: Backend, data: Path, pictures: Path, tmp_path: Path
) -> None:
    run(backend, job(tmp_path / "whole", pictures))
    out = tmp_path / "run"
    png(data, BAD).write_bytes(stopped(backend, out, data))
    said, _ = run(backend, job(out, data, resume=True))
    assert weights(out) == weights(tmp_path / "whole")
    assert [text for text in said if text.startswith("pictures: ")] == [
        "pictures: 1 that no step had used have changed, and are used as they are now "
        f"({BAD:02d}.png)."
    ]
    png(data, BAD).write_bytes(png(data, BAD).read_bytes()[:-1] + b"x" * 9)  # once used, it stays
    assert f"({BAD:02d}.png is another picture)" in refusal(backend, job(out, data, resume=True))


@pytest.fixture
def torch() -> Backend:
    return BACKENDS["torch"]()


@pytest.mark.parametrize("with_caption", [True, False])
def test_the_next_picture_takes_the_place_of_a_removed_one(
    torch: Backend, data: Path, tmp_path: Path, with_caption: bool
) -> None:
    out = tmp_path / "run"
    stopped(torch, out, data)
    png(data, BAD).unlink()
    if with_caption:
        png(data, BAD).with_suffix(".txt").unlink()
    said, seen = run(torch, job(out, data, resume=True))
    place = {BAD: (BAD + 1) % len(CAPTIONS)}
    assert seen == [CAPTIONS[place.get(row, row)] for row in ORDER[BAD_AT:16]]
    assert any(f"the next ones take their places ({BAD:02d}.png)" in text for text in said)
    # a second resumption keeps the hole, also when the picture is back
    shutil.copy(png(data, EARLIER), png(data, BAD))
    png(data, BAD).with_suffix(".txt").write_text(CAPTIONS[BAD])
    longer = dataclasses.replace(SETTINGS, steps=32)
    said, seen = run(torch, dataclasses.replace(job(out, data, resume=True), train=longer))
    assert seen == [CAPTIONS[place.get(row, row)] for row in ORDER[16:32]]
    assert not any(text.startswith("pictures: ") for text in said)


def test_a_picture_mended_as_a_file_of_another_kind_is_found(
    torch: Backend, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stopped(torch, out, data)
    png(data, BAD).unlink()
    shutil.copy(png(data, EARLIER), data / f"{BAD:02d}.PNG")
    said, seen = run(torch, job(out, data, resume=True))
    assert seen == [CAPTIONS[row] for row in ORDER[BAD_AT:16]]
    assert any(f"({BAD:02d}.PNG)" in text for text in said)


def test_files_without_use_may_come_and_go(torch: Backend, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copy(png(data, EARLIER), data / "bare.png")
    whole = stopped(torch, out, data)
    png(data, BAD).write_bytes(whole)
    (data / "bare.png").unlink()
    (data / "notes.md").write_text("mine")
    shutil.copy(png(data, EARLIER), data / "other.png")
    _, seen = run(torch, job(out, data, resume=True))
    assert seen == [CAPTIONS[row] for row in ORDER[BAD_AT:16]]


def test_what_really_changed_is_refused_by_name(torch: Backend, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    whole = stopped(torch, out, data)
    png(data, BAD).write_bytes(whole)
    used = sorted(ORDER[:BAD_AT])
    shutil.copy(png(data, EARLIER), data / "more.png")
    (data / "more.txt").write_text("one more")
    png(data, used[0]).unlink()
    png(data, used[1]).write_bytes(png(data, used[1]).read_bytes() + b"more")
    png(data, LATER).with_suffix(".txt").write_text("another caption")
    message = refusal(torch, job(out, data, resume=True))
    for part in (
        f"{used[0]:02d}.png is gone",
        f"{used[1]:02d}.png is another picture",
        f"{LATER:02d}.png has another caption",
        "more.png is new",
    ):
        assert part in message
    assert "was trained on other pictures than --data has now" in message
    assert load_training_meta(out)["step"] == BAD_AT


def test_skipping_bad_pictures_is_training_without_them(
    torch: Backend, data: Path, pictures: Path, tmp_path: Path
) -> None:
    clean = Path(shutil.copytree(data, tmp_path / "clean"))
    for number in (BAD, LATER):
        png(clean, number).unlink()
        png(clean, number).with_suffix(".txt").unlink()
    spoil(data, BAD)
    png(data, LATER).write_bytes(b"")  # its header is gone too
    said, seen = run(torch, job(tmp_path / "run", data, skip_bad=True))
    _, others = run(torch, job(tmp_path / "other", clean))
    assert seen == others
    assert weights(tmp_path / "run") == weights(tmp_path / "other")
    assert weights(tmp_path / "run") != {}
    (remark,) = [text for text in said if text.startswith("pictures: ")]
    assert remark.startswith("pictures: 2 of 16 are bad and left out (")
    assert remark.count("cannot be read as a PNG") == 2, "and why"
    # a resumed run goes on skipping, and those that are mended now stay left out
    shutil.copy(png(pictures, BAD), png(data, BAD))
    longer = dataclasses.replace(SETTINGS, steps=18)
    for folder, source in (("run", data), ("other", clean)):
        task = job(tmp_path / folder, source, resume=True)
        said, _ = run(torch, dataclasses.replace(task, train=longer))
        if folder == "run":
            assert any("stay left out" in text and f"{BAD:02d}.png" in text for text in said)
    assert weights(tmp_path / "run") == weights(tmp_path / "other")


def test_a_run_may_begin_to_skip_when_it_is_resumed(
    torch: Backend, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    spoil(data, LATER)
    stopped(torch, out, data)
    said, seen = run(torch, job(out, data, resume=True, skip_bad=True))
    holes = {BAD, LATER}
    rows = [row for row in range(len(CAPTIONS)) if row not in holes]
    place = {hole: min((r for r in rows if r > hole), default=rows[0]) for hole in holes}
    assert seen == [CAPTIONS[place.get(row, row)] for row in ORDER[BAD_AT:16]]
    assert any(text.startswith("pictures: 2 can no longer be used") for text in said)
    assert load_training_meta(out)["holes"] == sorted(holes)


def test_a_resumed_run_decodes_only_files_that_changed(
    torch: Backend, data: Path, tmp_path: Path
) -> None:
    """A file spoiled behind its size and its time is not noticed before a step meets it."""
    out = tmp_path / "run"
    five = dataclasses.replace(job(out, data, skip_bad=True), train=_steps(BAD_AT))
    run(torch, five)
    path = png(data, BAD)
    status, whole = path.stat(), path.read_bytes()
    path.write_bytes(whole[:60] + bytes(len(whole) - 60))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert f"{BAD:02d}.png: cannot be read" in refusal(torch, job(out, data, resume=True))
    os.utime(path)  # now it is
    said, _ = run(torch, job(out, data, resume=True))
    assert any("1 can no longer be used" in text and path.name in text for text in said)


def _steps(steps: int) -> TrainConfig:
    return dataclasses.replace(SETTINGS, steps=steps)


def test_nothing_is_left_where_every_picture_is_bad(
    torch: Backend, data: Path, tmp_path: Path
) -> None:
    for number in range(len(CAPTIONS)):
        spoil(data, number)
    out = tmp_path / "run"
    assert "none of the 16 pictures can be used" in refusal(torch, job(out, data, skip_bad=True))
    assert not out.exists()


def test_a_run_that_noted_no_pictures_resumes_if_nothing_changed(
    torch: Backend, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(torch, dataclasses.replace(job(out, data), train=_steps(2)))
    noted = (out / PICTURES).read_bytes()
    (out / PICTURES).unlink()
    run(torch, dataclasses.replace(job(out, data, resume=True), train=_steps(3)))
    assert (out / PICTURES).read_bytes() == noted  # noted now
    (out / PICTURES).write_text('{"file_name": "of another run"}\n')
    png(data, LATER).unlink()
    message = refusal(torch, job(out, data, resume=True))
    assert "was trained on other pictures than --data has now; restore them" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("holes", [99]), ("holes", 3), ("mended", {"x": ["a", 1, 2]}), ("mended", {"1": ["a"]})],
)
def test_damaged_notes_are_refused(
    torch: Backend, data: Path, tmp_path: Path, name: str, value: object
) -> None:
    out = tmp_path / "run"
    run(torch, dataclasses.replace(job(out, data), train=_steps(1)))
    notes = json.loads((out / "training.json").read_text())
    (out / "training.json").write_text(json.dumps(notes | {name: value}))
    message = refusal(torch, job(out, data, resume=True))
    assert "training.json is damaged" in message


def test_only_folders_have_bad_pictures(torch: Backend, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="skip_bad: applies to a folder"):
        run(
            torch,
            dataclasses.replace(job(tmp_path / "run", Path("x"), skip_bad=True), data="twemoji"),
        )


def test_a_caption_whose_picture_is_left_out_is_no_mistake(
    torch: Backend, data: Path, tmp_path: Path
) -> None:
    captions = (CAPTIONS[0], CAPTIONS[1], CAPTIONS[2])
    whole = png(data, 1).read_bytes()
    png(data, 1).write_bytes(b"none")
    task = job(tmp_path / "run", data, captions=captions, skip_bad=True)
    said, seen = run(torch, dataclasses.replace(task, train=_steps(2)))
    assert any("1 of 3 is bad and left out (01.png)" in text for text in said)
    assert set(seen) <= {captions[0], captions[2]}
    unknown = dataclasses.replace(task, out=tmp_path / "new", captions=("of none",))
    assert "no picture has the caption 'of none'" in refusal(torch, unknown)
    only = dataclasses.replace(unknown, captions=captions[1:2])
    assert "every picture with these captions is left out" in refusal(torch, only)
    png(data, 1).write_bytes(whole)


def test_a_recorded_caption_whose_picture_is_gone_is_no_mistake(
    torch: Backend, data: Path, tmp_path: Path
) -> None:
    used = {ORDER[step] for step in range(2)}
    rows = [*sorted(used), LATER]
    task = job(tmp_path / "run", data, captions=tuple(CAPTIONS[row] for row in rows))
    order = BatchPlan(len(rows), 1, SETTINGS.seed)
    gone = rows[int(order.indices(1)[0])]  # the first step does not look at it
    assert gone != rows[int(order.indices(0)[0])]
    run(torch, dataclasses.replace(task, train=_steps(1)))
    png(data, gone).unlink()
    png(data, gone).with_suffix(".txt").unlink()
    again = dataclasses.replace(task, resume=True, train=_steps(3))
    said, _ = run(torch, again)
    assert any(f"({gone:02d}.png)" in text for text in said)


@pytest.mark.parametrize("named", [True, False])
def test_a_resumed_run_has_the_options_that_it_was_started_with(
    torch: Backend, data: Path, tmp_path: Path, named: bool
) -> None:
    task = job(tmp_path / "run", data, captions=tuple(CAPTIONS[:3]))
    run(torch, dataclasses.replace(task, train=_steps(2)))
    again = dataclasses.replace(task, resume=True, train=_steps(6))
    if not named:
        again = dataclasses.replace(again, captions=None)
    _, seen = run(torch, again)
    assert set(seen) <= set(CAPTIONS[:3])
    other = dataclasses.replace(again, captions=tuple(CAPTIONS[:2]))
    assert refusal(torch, other).startswith("captions: the run in ")
    assert "leave out --captions" in refusal(torch, other)
    colored = dataclasses.replace(again, background="color")
    assert refusal(torch, colored).startswith("background: the run in ")


def test_a_run_that_noted_no_options_takes_those_that_are_given(
    torch: Backend, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    task = job(out, data, captions=tuple(CAPTIONS[:3]))
    run(torch, dataclasses.replace(task, train=_steps(2)))
    notes = json.loads((out / "training.json").read_text())
    options = notes.pop("options")
    assert options == {"captions": list(CAPTIONS[:3])}
    (out / "training.json").write_text(json.dumps(notes))
    hashes = json.loads((out / "hashes.json").read_text())
    written = (out / "training.json").read_bytes()
    hashes["training.json"] |= {
        "sha256": hashlib.sha256(written).hexdigest(),
        "bytes": len(written),
    }
    (out / "hashes.json").write_text(json.dumps(hashes))
    run(torch, dataclasses.replace(task, resume=True, train=_steps(3)))
    for damaged in ([1], {"captions": "a"}, {"captions": [1]}, {"x": 1}, {"background": "red"}):
        (out / "training.json").write_text(json.dumps(notes | {"options": damaged}))
        again = dataclasses.replace(task, resume=True, train=_steps(3))
        assert "training.json is damaged" in refusal(torch, again)


def test_a_very_long_list_of_captions_is_noted_but_not_kept(tmp_path: Path) -> None:
    long = ChosenData(("x" * (1 << 20), "y"))
    saved = {"options": long.as_json()}
    assert saved == {"options": {"captions": True}}
    assert long.resumed(saved, tmp_path) == long
