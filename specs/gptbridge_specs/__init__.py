"""The spec: what a run is, with no word about how a framework does it."""

from gptbridge_specs.model import ModelSpec
from gptbridge_specs.run import RunSpec

__all__ = ["ModelSpec", "RunSpec"]
