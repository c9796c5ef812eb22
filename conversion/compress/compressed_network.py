"""The torch network with a bundle's weights in place: a fast stand-in for the bundle.

Input: an fp16 bundle and the model it was made from. Output: a network with the same numbers, in
which weights can be exchanged one by one. Weights are matched by name and compared by value; a
model with other weights is refused.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdm_apple.torch.unet import Conditioning

from ..bundle.folder import Bundle
from ..errors import BundleError
from ..layouts.choose import parts_of
from ..layouts.parts import Part
from ..source.model import ModelSource
from ..source.trajectory import TextInputs, condition_on, network_predictions
from .settings import Key, PlannedWeight
from .weighted_package import open_weights


class CompressedNetwork:
    """A private copy of a model's network and text encoder, all numbers rounded to fp16.

    Args:
        plan: the weights that will be exchanged. Raises BundleError if the model is another one.
    """

    def __init__(self, bundle: Bundle, source: ModelSource, plan: Sequence[PlannedWeight]) -> None:
        if source.config != bundle.config():
            raise BundleError(
                f"{bundle.path}: was made from a model with another configuration; give its own "
                "folder."
            )
        self.source = dataclasses.replace(
            source, net=copy.deepcopy(source.net), encoder=copy.deepcopy(source.encoder)
        )
        for module in filter(None, (self.source.net, self.source.encoder)):
            for parameter in module.parameters():
                parameter.data = parameter.data.half().float()
        self._parameters = _matched(bundle, self.source, plan)

    def exchange(self, weights: Mapping[Key, NDArray[Any]]) -> dict[Key, NDArray[Any]]:
        """Exchange weights; returns the previous ones, so that they can be restored."""
        before: dict[Key, NDArray[Any]] = {}
        for key, numbers in weights.items():
            parameter = self._parameters[key]
            before[key] = parameter.numpy().copy()
            parameter.copy_(torch.from_numpy(np.asarray(numbers, np.float32)).view_as(parameter))
        return before

    def condition(self, text: TextInputs | None) -> Conditioning:
        """The conditioning from the prompts, through the text encoder if there is one."""
        with torch.inference_mode():
            if text is not None and self.source.encoder is not None and text.ids is not None:
                ids, mask = torch.from_numpy(text.ids).long(), torch.from_numpy(text.mask)
                text = dataclasses.replace(text, features=self.source.encoder(ids, mask).numpy())
            return condition_on(self.source.net, text)

    def predict(
        self, x_t: Sequence[NDArray[Any]], time: int, conditioning: Conditioning
    ) -> list[Tensor]:
        """Prediction per level, highest first. time: the table index less one."""
        images = [torch.from_numpy(x) for x in x_t]
        with torch.inference_mode():
            return network_predictions(
                self.source, self.source.net, images, time, None, conditioning
            )


def _matched(
    bundle: Bundle, source: ModelSource, plan: Sequence[PlannedWeight]
) -> dict[Key, Tensor]:
    """The network tensor behind each planned weight, sharing the network's memory."""
    parts = {p.name: p for p in parts_of(source, bundle.manifest.layout, bundle.compute)}
    found: dict[Key, Tensor] = {}
    for info in bundle.manifest.packages:
        mine = [p for p in plan if p.package == info.name]
        if not mine:
            continue
        package = open_weights(bundle, info)
        part = parts.get(_part_name(info.name, parts))
        known = {} if part is None else _constants(part)
        by_numbers = _by_numbers(known.values())
        for name in (p.weight.name for p in mine):
            stored = package.numbers(name).tobytes()
            named = known.get(name)
            if named is None:  # a layer that uses a view of its weight leaves no name
                tensor = by_numbers.get(stored)
            else:
                tensor = next((form for form in _forms(named) if _numbers(form) == stored), None)
            if tensor is None:
                reason = "is in no layer of the model" if named is None else "has other numbers"
                raise BundleError(
                    f"{bundle.path}: its weight {name} in {info.name} {reason}; give the folder of "
                    "the model it was made from."
                )
            found[info.name, name] = tensor
    return found


def _constants(part: Part) -> dict[str, Tensor]:
    """Parameters of a part under the names that capture and lowering give them."""
    named = part.module.named_parameters(remove_duplicate=False)
    return {_constant_name(name): parameter.data for name, parameter in named}


def _by_numbers(tensors: Iterable[Tensor]) -> dict[bytes, Tensor]:
    """Tensors and their transposes by their fp16 numbers, leaving out numbers that several have."""
    places = {tensor.data_ptr(): tensor for tensor in tensors}
    forms = [(_numbers(form), form) for tensor in places.values() for form in _forms(tensor)]
    counts = Counter(numbers for numbers, _ in forms)
    return {numbers: form for numbers, form in forms if counts[numbers] == 1}


def _forms(tensor: Tensor) -> Iterator[Tensor]:
    """A weight, and a matrix transposed, as Core AI may store it; all share its memory."""
    yield tensor
    if tensor.ndim >= 2 and min(tensor.shape[:2]) > 1 and math.prod(tensor.shape[2:]) == 1:
        yield tensor.flatten(1).t()


def _numbers(tensor: Tensor) -> bytes:
    return tensor.numpy().astype(np.float16).tobytes()


def _constant_name(parameter: str) -> str:
    return f"p_{parameter.replace('.', '_').lower()}_to_fp16"


def _part_name(package: str, parts: Mapping[str, Any]) -> str:
    """The part behind a package, which is all of it or a piece called <part>_1, <part>_2_1 ..."""
    whole = [name for name in parts if package == name or package.startswith(f"{name}_")]
    return max(whole, key=len, default="")
