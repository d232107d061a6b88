"""The conformance kit, run against every built-in dialect."""

from __future__ import annotations

from gptbridge.testing import DialectConformance


class TestTorch(DialectConformance):
    dialect = "torch"


class TestGptbridge(DialectConformance):
    dialect = "gptbridge"


class TestPaddle(DialectConformance):
    dialect = "paddle"


class TestMindspore(DialectConformance):
    dialect = "mindspore"


class TestFleetx(DialectConformance):
    dialect = "fleetx"


class TestModelscope(DialectConformance):
    dialect = "modelscope"


class TestMegatron(DialectConformance):
    dialect = "megatron"


class TestNanogpt(DialectConformance):
    dialect = "nanogpt"
