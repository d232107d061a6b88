"""How Paddle would cut the model and the batch over devices. It runs on one device so far."""

from __future__ import annotations

from gptbridge.capabilities import SINGLE_DEVICE

LIMITS = SINGLE_DEVICE
