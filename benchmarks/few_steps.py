"""The packaged student against its teacher: whole pictures, from prompt to pixels."""

from __future__ import annotations

from benchmarks.harness import Row, in_turn
from mdm_apple.bundled_models import EMOJI, EMOJI_STUDENT
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.model_folder import weights_sha256
from mdm_apple.torch.load import open_runtime

TEACHER_STEPS = 50


def student_beside_teacher(steps: int, repetitions: int) -> Row:
    """One picture in `steps` student steps, and in 50 guided DDIM steps by the teacher."""
    student, teacher = open_runtime(EMOJI_STUDENT), open_runtime(EMOJI)
    few = SamplerConfig("student", steps, guidance_scale=2.0)
    many = SamplerConfig("ddim", TEACHER_STEPS, guidance_scale=2.0)
    prompts = [Prompt("red heart", 0)]
    ours, other = in_turn(
        lambda: finish(generate(student, prompts, few)),
        lambda: finish(generate(teacher, prompts, many)),
        repetitions=repetitions,
    )
    return Row(
        f"a picture in {steps} of the student's steps",
        ours,
        f"teacher, {TEACHER_STEPS} guided steps",
        other,
        figures={"teacher over student": other.median / ours.median},
        note="Not the same pictures: what they are worth is in the models' cards.",
        model_sha256=weights_sha256(EMOJI_STUDENT),
    )
