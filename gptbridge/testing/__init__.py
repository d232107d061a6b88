"""The conformance kit: `class TestMine(BackendConformance): backend = "mine"` in a pytest file."""

from __future__ import annotations

from gptbridge.testing.conformance import BackendConformance

__all__ = ["BackendConformance"]
