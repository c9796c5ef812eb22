"""`mdm demo`, all of it but shorter: what it leaves is whole and says whose work it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mdm_apple.cli import group
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.demo.run import BITS, demo_config
from mdm_apple.errors import has_coreai
from mdm_apple.storage.model_folder import load_model_config


def test_the_model_of_the_demo_says_whose_drawings_it_learned_from() -> None:
    origin = demo_config().provenance
    assert origin.license == "CC-BY-4.0"
    assert "Twemoji" in (origin.source or "")


@pytest.mark.slow
def test_the_whole_way_and_its_provenance(tmp_path: Path) -> None:
    done = CliRunner().invoke(group, ["demo", "--steps", "10", "--out", str(tmp_path), "--quiet"])
    assert done.exit_code == 0, done.exception
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    origin = load_model_config(tmp_path / "model").provenance
    assert origin == demo_config().provenance
    for folder in ("bundle", *(f"bundle_{bits}bit" for bits in BITS)):
        bundle = Bundle.open(tmp_path / folder)
        assert bundle.manifest.layout == "nested"
        assert bundle.manifest.provenance == origin
    if has_coreai():
        packages = Bundle.open(tmp_path / "bundle_coreai").manifest.packages
        assert all(f"<td>{package.name}</td>" in page for package in packages)
    assert f"Licence:\n{origin.license}." in page
    assert origin.source is not None
    assert origin.source in page
