"""Parallel layouts of the torch backend: one device so far."""

from __future__ import annotations

from gptbridge.plugins.capabilities import SINGLE_DEVICE

LIMITS = SINGLE_DEVICE
