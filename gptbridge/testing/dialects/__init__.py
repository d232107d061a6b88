"""The conformance kit's tests of a dialect: one that passes them loses nothing on the way and back."""

from __future__ import annotations

from gptbridge.testing.dialects.configuration import ConfigurationTests
from gptbridge.testing.dialects.layouts import LayoutTests
from gptbridge.testing.dialects.recognition import RecognitionTests
from gptbridge.testing.dialects.round_trips import RoundTripTests, SplitTests


class DialectConformance(LayoutTests, ConfigurationTests, RoundTripTests, SplitTests, RecognitionTests):
    """Subclass it in a pytest file and name the dialect: every test here then runs against it.

    What a table says wrongly in both directions comes back right all the same. Override `system_logits`
    to compare with the system's own software, or with something that reads its files independently.
    """
