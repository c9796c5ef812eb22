"""The bundles made of the small model, shared by the conversion tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_cache import converted, palettized

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.compress.palettize import PalettizeReport
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.source.model import ModelSource, load_source


@pytest.fixture(scope="session")
def tiny_source(model_folder: Path) -> ModelSource:
    return load_source(model_folder)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The fp16 bundle of the model in one package; tests copy it before they change anything."""
    out = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    return converted(tiny_source, out, ConvertOptions("monolith"))


@pytest.fixture(scope="session")
def nested(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The fp16 bundle of the model with a package per way through a level."""
    return converted(tiny_source, tmp_path_factory.mktemp("bundles") / "nested.bundle")


@pytest.fixture(scope="session")
def tiny_palettized(
    tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, PalettizeReport]:
    """`tiny_bundle` at 4 bits."""
    out = tmp_path_factory.mktemp("bundles") / "tiny-4.bundle"
    return palettized(tiny_bundle, out, Setting(4))
