"""Results on stdout (text, or one JSON object), progress on stderr; options that commands share."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from mdm_apple.errors import MdmError
from mdm_apple.storage.files import occupied

Command = TypeVar("Command", bound=Callable[..., Any])
Request = TypeVar("Request")


@dataclass(frozen=True)
class Output:
    """Where a command writes its result and its progress."""

    as_json: bool
    quiet: bool

    def say(self, text: str) -> None:
        """Print progress for a person."""
        if not self.quiet:
            click.echo(text, err=True)

    def result(self, values: dict[str, Any], text: str) -> None:
        """Print the result, as text or as JSON."""
        click.echo(_json(values) if self.as_json else text)
        sys.stdout.flush()


def _json(values: dict[str, Any]) -> str:
    """One line; escaped where a file name is not UTF-8 or would upset a terminal."""
    line = json.dumps(values, ensure_ascii=False)
    return line if line.isprintable() else json.dumps(values)


def output_options(command: Command) -> Command:
    """Adds --json and --quiet."""
    command = click.option("--quiet", is_flag=True, help="No progress on stderr.")(command)
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(
        command
    )


def filling(
    request: Callable[..., Request],
) -> Callable[[Callable[[Request, Output], None]], Callable[..., None]]:
    """Call a command with its options as one `request` and with its `Output`.

    A request with a field `given` learns which options the caller gave.
    """
    asks = "given" in {field.name for field in dataclasses.fields(cast("Any", request))}

    def wrap(command: Callable[[Request, Output], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def filled(as_json: bool, quiet: bool, **options: Any) -> None:
            if asks:
                source = click.get_current_context().get_parameter_source
                default = click.core.ParameterSource.DEFAULT
                options["given"] = frozenset(n for n in options if source(n) is not default)
            command(request(**options), Output(as_json, quiet))

        return filled

    return wrap


def renamed(old: str, new: str) -> Callable[[Command], Command]:
    """Refuses the old spelling of an option, and names the new one."""

    def refuse(context: click.Context, option: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{old} is now called {new}.", context)

    return click.option(old, hidden=True, expose_value=False, callback=refuse)


overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace an existing output; nothing is overwritten otherwise.",
)


def refuse_existing(path: Path, overwrite: bool, option: str = "--out") -> None:
    """Refuse to replace an output without `overwrite`. An empty folder counts as absent."""
    if occupied(path) and not overwrite:
        raise MdmError(f"{path} exists; choose another {option} or add --overwrite.")


def refuse_existing_bundle(path: Path, overwrite: bool) -> None:
    """Like `refuse_existing`, but --overwrite replaces nothing except a bundle."""
    refuse_existing(path, overwrite)
    if occupied(path) and not (path / "manifest.json").is_file():
        raise MdmError(f"{path}: is not a bundle, so it is not overwritten; choose another --out.")
