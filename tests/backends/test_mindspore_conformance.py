"""The MindSpore backend against the conformance kit."""

from __future__ import annotations

from gptbridge.testing import BackendConformance


class TestMindSpore(BackendConformance):
    backend = "mindspore"
