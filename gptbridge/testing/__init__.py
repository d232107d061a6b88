"""The conformance kits: `class TestMine(BackendConformance): backend = "mine"` in a pytest file.

For a dialect `class TestMine(DialectConformance): dialect = "mine"`.
"""

from __future__ import annotations

from gptbridge.testing.conformance import BackendConformance
from gptbridge.testing.dialects import DialectConformance

__all__ = ["BackendConformance", "DialectConformance"]
