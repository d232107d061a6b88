"""The conformance kit goes red for each known way to be wrong: backends that are wrong in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gptbridge.testing import BackendConformance
from tests.plugins.conftest import WritePlugin
from tests.plugins.mutants import MUTANT, MUTANTS

EXAMPLE = Path(__file__).parents[2] / "examples" / "gptbridge-numpy"


@pytest.fixture
def make_mutant(write_plugin: WritePlugin, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that registers the backend `mutant`; its children see the example too."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLE), os.environ["PYTHONPATH"]]))

    def make(source: str) -> None:
        body = source if source.startswith("\n") else "\n        pass"
        module = "" if source.startswith("\n") else source
        top = module.removeprefix("TOP ") if module.startswith("TOP ") else ""
        end = "" if top else module
        write_plugin("mutant", MUTANT.format(body=body, top=top, end=end))

    return make


def kit() -> BackendConformance:
    class Kit(BackendConformance):
        backend = "mutant"

    return Kit()


@pytest.mark.parametrize("mistake", MUTANTS)
def test_the_kit_notices(mistake: str, make_mutant: Callable[[str], None]) -> None:
    test, arguments, message, source = MUTANTS[mistake]
    make_mutant(source)
    with pytest.raises((AssertionError, pytest.fail.Exception)) as caught:
        getattr(kit(), test)(*arguments)
    assert message in str(caught.value)


def test_the_kit_passes_what_is_right(make_mutant: Callable[[str], None]) -> None:
    make_mutant("")
    for test, arguments, _, _ in MUTANTS.values():
        getattr(kit(), test)(*arguments)
