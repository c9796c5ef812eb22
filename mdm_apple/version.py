"""The version of the package; recipes and manifests carry it."""

__version__ = "0.1.0"
