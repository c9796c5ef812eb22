"""The network in layers that the Neural Engine likes: torch to torch, weights carried by name.

    net = for_neural_engine(source.net)

Every tensor has at most four axes with the longest of them last: tokens are (B, C, 1, S), linear
layers are 1x1 convolutions, attention runs per head and for a few hundred queries at a time with
the softmax over channels, and norms average in short steps. The result is the same to rounding.

Sources of the rules: Apple, "Deploying Transformers on the Apple Neural Engine" (2022), and its
ml-ane-transformers and ml-stable-diffusion repositories.
"""

from .network import for_neural_engine

__all__ = ["for_neural_engine"]
