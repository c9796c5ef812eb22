"""Pictures, class labels and pipelines: what the description of a package adds to its program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from execute_cases import arrays, ct, decibels, save, traced
from PIL import Image

from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.execute import ExecutionError, Package

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

LEAST = 90.0  # dB
HIGH, WIDE = 8, 10


class Seen(nn.Module):
    """A small network for (1, C, 8, 10), with scores of three classes."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv, self.head = nn.Conv2d(channels, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return torch.softmax(4 * self.head(F.relu(self.conv(x)).mean((2, 3))), 1)


def pixels(channels: int = 3, high: int = HIGH, wide: int = WIDE) -> np.ndarray:
    shape = (high, wide, 3) if channels == 3 else (high, wide)
    return np.random.RandomState(5).randint(0, 256, shape).astype(np.uint8)


def picture_package(folder: Path, layout: str, channels: int = 3) -> tuple[Any, Package]:
    """A package as people make it: a picture with scale and bias, in some order of colors."""
    module = Seen(channels)
    bias = [-0.4, -0.5, -0.6] if channels == 3 else -0.5
    kind = ct.ImageType(
        name="image",
        shape=(1, channels, HIGH, WIDE),
        scale=1 / 127.5,
        bias=bias,
        color_layout=getattr(ct.colorlayout, layout),
    )
    model = traced(module, (torch.rand(1, channels, HIGH, WIDE),), [kind])
    return module, Package.open(save(model, folder))


def seen_by_hand(module: Any, planes: np.ndarray) -> np.ndarray:
    """The network on planes (C, H, W) of 0 to 255 in the order of the package."""
    bias = np.array([-0.4, -0.5, -0.6] if len(planes) == 3 else [-0.5])[:, None, None]
    with torch.no_grad():
        return module(torch.from_numpy(planes / 127.5 + bias)[None].float()).numpy()


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_picture_its_array_and_torch_agree_and_another_order_does_not(
    tmp_path: Path, layout: str
) -> None:
    module, package = picture_package(tmp_path, layout)
    program, picture = package.load(), pixels()
    ordered = picture.transpose(2, 0, 1)[:: -1 if layout == "BGR" else 1].astype(np.float32)
    (got,), (as_pil,), (as_array,) = (
        program({"image": value}).values()
        for value in (picture, Image.fromarray(picture), ordered[None])
    )
    assert decibels(got, seen_by_hand(module, ordered)) > LEAST
    assert np.array_equal(got, as_pil)
    assert np.array_equal(got, as_array)
    assert decibels(got, seen_by_hand(module, ordered[::-1])) < LEAST - 20


def test_gray_picture_matches_torch(tmp_path: Path) -> None:
    module, package = picture_package(tmp_path, "GRAYSCALE", 1)
    (got,) = package.load()({"image": pixels(1)}).values()
    assert decibels(got, seen_by_hand(module, pixels(1)[None].astype(np.float32))) > LEAST
    assert decibels(got, seen_by_hand(module, pixels(1)[None] * np.float32(0.9))) < LEAST - 20


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pixels() / np.float32(255), "expected a picture in RGB, 10 wide and 8 high, as uint8"),
        (pixels().transpose(2, 0, 1)[None] / np.float32(255), "this has 0 to 1; give 0 to 255"),
        (pixels().transpose(2, 0, 1)[None] * np.float32(2), "this has 0 to 510"),
        (np.full((1, 3, HIGH, WIDE), np.nan), "this has nan to nan"),
        (pixels(3, 16, 20), "10 wide and 8 high, got one 20 wide and 16 high; resize it first"),
        (np.zeros((1, 3, WIDE, HIGH)), "got one 8 wide and 10 high"),
        (pixels(1), r"got uint8\[8, 10\]"),
        (np.zeros((HIGH, WIDE, 4), np.uint8), r"got uint8\[8, 10, 4\]"),
        (np.zeros(3), r"got float64\[3\]"),
    ],
)
def test_what_is_no_picture_for_the_package_is_refused(
    tmp_path: Path, value: np.ndarray, message: str
) -> None:
    """Numbers from 0 to 1 used to pass, and every result was wrong."""
    _, package = picture_package(tmp_path, "RGB")
    with pytest.raises(ExecutionError, match=message) as refusal:
        package.load()({"image": value})
    assert "input 'image'" in str(refusal.value)


def test_flexible_picture_has_the_sizes_that_the_package_allows(tmp_path: Path) -> None:
    sizes = [ct.RangeDim(lower_bound=4, upper_bound=top, default=8) for top in (20, 30)]
    kind = ct.ImageType(name="image", shape=ct.Shape(shape=(1, 3, *sizes)))
    module, x = Seen(), torch.rand(1, 3, 8, 8)
    program = Package.open(save(traced(module, (x,), [kind]), tmp_path)).load()
    picture = pixels(3, 12, 30)
    (got,) = program({"image": picture}).values()
    with torch.no_grad():
        planes = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32))
        assert decibels(got, module(planes)) > LEAST
    with pytest.raises(ExecutionError, match="4 to 30 wide and 4 to 20 high, got one 31 wide"):
        program({"image": pixels(3, 12, 31)})


# --- classifiers --------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["cat", "dog", "bird"], [3, 5, 2**40]], ids=["text", "number"])
def test_classifier_returns_label_and_probabilities(tmp_path: Path, labels: list[Any]) -> None:
    module, x = Seen(), torch.randn(1, 3, HIGH, WIDE)
    config = ct.ClassifierConfig(labels)
    package = Package.open(
        save(traced(module, (x,), arrays(x), classifier_config=config), tmp_path)
    )
    results = package.load()({"in0": x.numpy()})
    with torch.no_grad():
        want = module(x)[0].numpy()
        assert results["classLabel"] == labels[int(want.argmax())]
        assert set(results) == {"classLabel", "classLabel_probs"}
        probabilities = results["classLabel_probs"]
        assert list(probabilities) == labels
        assert decibels(list(probabilities.values()), want) > LEAST
        module.head.bias[int(want.argmax())] -= 5
        other = module(x)[0].numpy()
    assert results["classLabel"] != labels[int(other.argmax())]
    assert decibels(list(probabilities.values()), other) < LEAST - 20


# --- pipelines ----------------------------------------------------------------------------------


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.conv(x))


class Second(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        return self.head(x.mean((2, 3)))


def test_pipeline_of_two_models_matches_torch(tmp_path: Path) -> None:
    first, second, x = First(), Second(), torch.randn(1, 3, HIGH, WIDE)
    with torch.no_grad():
        models = [
            traced(first, (x,), arrays(x), outputs=[ct.TensorType(name="middle")]),
            traced(
                second,
                (first(x),),
                [ct.TensorType(name="middle", shape=first(x).shape)],
                outputs=[ct.TensorType(name="end")],
            ),
        ]
    with quiet_coremltools():
        package = Package.open(save(ct.utils.make_pipeline(*models), tmp_path))
    assert len(package.stages) == 2
    program = package.load()
    results = program({"in0": x.numpy()})
    assert list(results) == ["end"]
    with torch.no_grad():
        assert decibels(results["end"], second(first(x))) > LEAST
        first.conv.weight[0, 0, 0, 0] += 0.05
        assert decibels(results["end"], second(first(x))) < LEAST - 20
    with pytest.raises(ExecutionError, match="is a pipeline of 2 models"):
        package.function()
    with pytest.raises(ExecutionError, match=r"input 'image': unknown\. .*in0"):
        program({"image": x.numpy()})
    with pytest.raises(ExecutionError, match="input 'in0': missing"):
        program({})
    with pytest.raises(ExecutionError, match="no function 'main'; it is a pipeline"):
        package.load("main")


def test_picture_between_two_models_is_rounded_and_keeps_its_colors(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 0.7 + torch.tensor([10.0, 50.0, 120.0]).reshape(1, 3, 1, 1)

    x = torch.rand(1, 3, HIGH, WIDE)
    layout = ct.colorlayout

    def picture(name: str, order: Any) -> Any:
        return ct.ImageType(name=name, shape=x.shape, color_layout=order)

    with quiet_coremltools():
        models = [
            traced(
                Shifted(),
                (x,),
                [picture("image", layout.RGB)],
                outputs=[ct.ImageType(name="shifted", color_layout=layout.BGR)],
            ),
            traced(
                nn.Flatten(),
                (x,),
                [picture("shifted", layout.BGR)],
                outputs=[ct.TensorType(name="seen")],
            ),
        ]
        package = Package.open(save(ct.utils.make_pipeline(*models), tmp_path))
    (got,) = package.load()({"image": pixels()}).values()
    planes = pixels().transpose(2, 0, 1).astype(np.float32)
    want = planes * np.float32(0.7) + np.float32([10, 50, 120])[:, None, None]
    assert np.array_equal(got[0], np.clip(np.rint(want), 0, 255).reshape(-1))
    assert not np.array_equal(got[0], want.reshape(-1))
