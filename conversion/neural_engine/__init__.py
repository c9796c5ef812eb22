"""Rewrites the network in layers that suit the Neural Engine: torch to torch, same weight names.

    net = for_neural_engine(source.net)

Every tensor has at most four axes, the longest last. Tokens are (B, C, 1, S) and linear layers are
1x1 convolutions. Attention runs per head for a few hundred queries at a time, with the softmax over
channels. Norms average in short steps. The result is the same up to rounding.

Sources of the rules: Apple, "Deploying Transformers on the Apple Neural Engine" (2022), and its
ml-ane-transformers and ml-stable-diffusion repositories.
"""

from .network import for_neural_engine

__all__ = ["for_neural_engine"]
