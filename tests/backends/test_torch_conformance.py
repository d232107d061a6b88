from __future__ import annotations

from gptbridge.testing import BackendConformance


class TestTorch(BackendConformance):
    backend = "torch"
