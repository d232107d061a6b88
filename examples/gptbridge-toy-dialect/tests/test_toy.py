"""The conformance kit, run against this dialect."""

from __future__ import annotations

from gptbridge.testing import DialectConformance


class TestToy(DialectConformance):
    """Nothing is lost on the way to it and back."""

    dialect = "toy"
