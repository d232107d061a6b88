"""The spec: what a run is, with no word about how a framework does it."""

from gptbridge_specs.errors import SpecError
from gptbridge_specs.loading import dump_yaml, load_model, load_run
from gptbridge_specs.model import ModelSpec
from gptbridge_specs.run import RunSpec

__all__ = ["ModelSpec", "RunSpec", "SpecError", "dump_yaml", "load_model", "load_run"]
