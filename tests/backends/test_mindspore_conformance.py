"""The MindSpore backend against the conformance kit."""

from __future__ import annotations

from gptbridge.testing import BackendConformance


class TestMindSpore(BackendConformance):
    backend = "mindspore"
    # Attention is exp(log softmax) here: the gradient of one query in 576 is 2.7e-5 off.
    tolerance = 4e-5
