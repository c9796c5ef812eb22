"""A command that needs a package which is not installed says so before it does anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from click.testing import CliRunner

from mdm_apple.cli import group
from mdm_apple.errors import MissingPackageError, require_installed


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("coremltools", ["convert", "--preset", "tiny"]),
        ("coremltools", ["demo"]),
        ("emoji", ["demo"]),
        ("resvg_py", ["demo"]),
    ],
)
def test_the_package_is_named_and_nothing_is_made(
    package: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    out = tmp_path / "out"
    result = CliRunner().invoke(group, [*arguments, "--quiet", "--out", str(out)])
    assert isinstance(result.exception, MissingPackageError), result.exception
    assert str(result.exception).startswith(f"{package} is not installed. Run: pip install")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("installed", "extra"),
    [({"torch", "mlx"}, "torch"), ({"torch"}, "torch"), ({"mlx"}, "mlx"), (set[str](), "torch")],
)
def test_the_hub_comes_with_the_extra_of_the_backend_that_is_installed(
    installed: set[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Mac with MLX alone is not told to install PyTorch."""
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name in installed else None
    )
    with pytest.raises(MissingPackageError, match=rf"install 'mdm-apple\[{extra}\]'$"):
        require_installed("huggingface_hub")
