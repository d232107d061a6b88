"""How Paddle would cut the model and the batch over devices. It runs on one device so far."""

from __future__ import annotations

from gptbridge.plugins.capabilities import SINGLE_DEVICE

LIMITS = SINGLE_DEVICE
