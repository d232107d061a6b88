"""How the MindSpore backend is laid out over devices: on one, so far."""

from __future__ import annotations

from gptbridge.plugins.capabilities import SINGLE_DEVICE

LIMITS = SINGLE_DEVICE
