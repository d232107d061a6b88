"""The conformance kit, run against this backend."""

from __future__ import annotations

from gptbridge.testing import BackendConformance


class TestNumpy(BackendConformance):
    """NumPy trains the same model as every other backend."""

    backend = "numpy"
