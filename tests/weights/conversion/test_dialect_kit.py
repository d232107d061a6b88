"""The conformance kit, run against every dialect that is registered."""

from __future__ import annotations

from gptbridge.testing import DialectConformance
from gptbridge.weights.dialects.registry import dialect_names

for _name in dialect_names():
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (DialectConformance,), {"dialect": _name})
