"""One framework a process: paddle and mindspore cannot be linked into the same one.

A file called test_{torch,paddle,mindspore}_*.py is left out when pytest walks this folder, and
runs when it is named: `pytest tests/backends/test_paddle_model.py`. test_frameworks.py names the
files of each framework to a pytest of their own, so that a plain `pytest` runs everything.
"""

from __future__ import annotations

from pathlib import Path

import pytest

# Its tests are inherited: pytest shows the values of a failed assert in test files only, and here.
pytest.register_assert_rewrite("tests.backends.sessions")

FRAMEWORK_FILES = ("test_torch_", "test_paddle_", "test_mindspore_")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out framework files; pytest does not ask about files that are named to it."""
    return collection_path.name.startswith(FRAMEWORK_FILES) or None
