from __future__ import annotations

from gptbridge.testing import BackendConformance


class TestPaddle(BackendConformance):
    backend = "paddle"
