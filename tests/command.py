"""The command line, as a process of its own is told to run it."""

from __future__ import annotations

import sys

CODE = "from gptbridge_cli.main import main; main()"
COMMAND = (sys.executable, "-c", CODE)
