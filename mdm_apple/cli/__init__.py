"""The `mdm` command. Each command has its own module, imported when the command runs."""

from __future__ import annotations

import importlib
import signal
from typing import NoReturn

import click

from mdm_apple.errors import MdmError, system_reason
from mdm_apple.version import __version__

COMMANDS = {
    "data": "Check a folder of captioned pictures before training.",
    "shards": "Make tar shards from a folder of captioned pictures.",
    "index": "Read the headers of tar shards once, for training on them.",
    "train": "Train a model on captioned pictures.",
    "distill": "Teach a student to make a model's pictures in a few steps.",
    "sample": "Make pictures from prompts.",
    "upscale": "Enlarge a small picture, as the model does from level to level.",
    "import": "Turn an Apple checkpoint into a model folder.",
    "fetch": "Download one of Apple's checkpoints and import it.",
    "export": "Write a trained model for shipping: averaged weights only, in 16 bits.",
    "embed": "Compute text features once, for training or for apps.",
    "convert": "Make a Core ML or Core AI bundle from a model folder.",
    "palettize": "Compress the weights of a bundle.",
    "verify": "Prove a bundle against the model it came from.",
    "evaluate": "Score a model's pictures against real ones.",
    "inspect": "Show what is in a model, a bundle or anybody's Core ML package.",
    "run": "Run anybody's Core ML package on this machine.",
    "bench": "Measure speed, memory and quality, here or on a device.",
    "doctor": "Read device results and say what to ship.",
    "serve-bundle": "Run the packages of a bundle for another program.",
    "demo": "Run the whole pipeline in miniature: train, sample, convert, palettize, verify.",
}


class LazyGroup(click.Group):
    """Imports the module of a command only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mdm_apple.cli.{cmd_name.replace('-', '_')}_command")
        return module.command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mdm")
def group() -> None:
    """Matryoshka diffusion models from training to a phone."""


def main() -> None:
    """Run a command; a refusal is one sentence on stderr and exit code 1, or 2 for a wrong call.

    75 means: saved, run me again.

    SIGTERM ends a command as Ctrl-C does: it tidies up after itself.
    """
    signal.signal(signal.SIGTERM, _ended)
    try:
        group.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        raise SystemExit(130) from None
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.ClickException as error:
        raise _refusal(_explained(error), error.exit_code) from None
    except MdmError as error:
        raise _refusal(str(error), error.exit_code) from None
    except OSError as error:  # code that knows more than the system names the file itself
        place = f"{error.filename}: " if error.filename is not None else ""
        raise _refusal(f"{place}cannot continue; {system_reason(error)}") from None
    except MemoryError:
        raise _refusal("there is not enough memory for this; choose smaller settings.") from None
    finally:  # from here on there is nothing to tidy up, and Python would print a traceback
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def _ended(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _refusal(sentence: str, code: int = 1) -> SystemExit:
    """Print it on one line, even if a file name or a library put a line break into it."""
    line = "".join(c if c.isprintable() else " " for c in sentence)
    click.echo(f"mdm: {line}", err=True)
    return SystemExit(code)


def _explained(error: click.ClickException) -> str:
    """click's message; a wrong call also gets a pointer to the command's help."""
    message = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message} See {error.ctx.command_path} --help."
    return message
