"""FID and CLIP score, on networks of random weights: those that are fetched are not here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mdm_apple.errors import MissingPackageError
from mdm_apple.evaluation.distances import frechet_distance
from mdm_apple.torch.fid_clip import ClipScore, FrechetInception

pytest.importorskip("torchmetrics", reason="needs torchmetrics: pip install 'mdm-apple[eval]'")
transformers = pytest.importorskip("transformers", reason="needs transformers")

CAPTIONS = ["red heart", "cat", "dog", "red cat"]


class Means(nn.Module):
    """Features that are easy to repeat: mean and deviation of each channel."""

    num_features = 6

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = pictures.float()
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)


def pictures(seed: int, count: int = 40, lift: float = 0.0) -> NDArray[np.float32]:
    noise = np.random.RandomState(seed).randn(count, 3, 8, 8) * 0.3 + lift
    return np.clip(noise, -1, 1).astype(np.float32)


def test_the_frechet_distance_is_that_of_the_networks_features() -> None:
    real, made = pictures(0), pictures(1, lift=0.2)
    score = FrechetInception(Means())
    for part in (slice(0, 15), slice(15, 40)):
        score.add(real[part], made[part], [""] * 25)
    unit = [torch.from_numpy((x + 1) / 2) for x in (real, made)]
    expected = frechet_distance(*(Means()(x).numpy().astype(np.float64) for x in unit))
    assert score.value() == pytest.approx(expected, rel=1e-3)
    same = FrechetInception(Means())
    same.add(real, real, [""] * 40)
    assert same.value() < 1e-6 < score.value()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, object]:
    folder: Path = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(97, 123)]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32
    )
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    text = size | ends | {"vocab_size": len(pieces), "num_hidden_layers": 1}
    vision = size | {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return transformers.CLIPModel(config), tokenizer


def test_the_clip_score_is_the_mean_over_pictures_and_depends_on_both(
    clip: tuple[object, object],
) -> None:
    made = pictures(2, 4)

    def scored(images: NDArray[np.float32], captions: list[str], parts: int) -> float:
        score = ClipScore(*clip)
        for some in np.array_split(np.arange(len(captions)), parts):
            chosen = [captions[i] for i in some]
            score.add(images[some], images[some], chosen)
        return score.value()

    whole = scored(made, CAPTIONS, 1)
    assert 0 <= whole <= 100
    singly = [scored(made[[i]], [CAPTIONS[i]], 1) for i in range(4)]
    assert whole == pytest.approx(np.mean(singly), abs=1e-4)
    assert scored(made, CAPTIONS, 2) == pytest.approx(whole, abs=1e-4)
    assert abs(scored(made, CAPTIONS[::-1], 1) - whole) > 1e-4
    assert abs(scored(-made, CAPTIONS, 1) - whole) > 1e-4


def test_the_usual_inception_names_the_package_that_it_needs() -> None:
    try:
        import torch_fidelity  # noqa: F401  # type: ignore[import-not-found]
    except ImportError:
        with pytest.raises(MissingPackageError, match=r"torch_fidelity .*mdm-apple\[eval\]"):
            FrechetInception()
    else:
        pytest.skip("needs a machine without torch-fidelity")
