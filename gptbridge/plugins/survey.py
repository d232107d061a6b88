"""What is installed: the state of every backend, as `gptbridge backends` shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from gptbridge.errors import BridgeError
from gptbridge.plugins.backend import load_backend, load_plugin
from gptbridge.plugins.finding import backend_names, framework_version, hardware_names, missing_framework
from gptbridge.plugins.loading import hardware_problems
from gptbridge.process.worker import run_worker

State = Literal["ready", "not installed", "broken"]

PROBE_TIMEOUT = 120.0  # seconds; importing a framework takes up to 10 on a busy machine


@dataclass(frozen=True, slots=True)
class Report:
    """One backend as it is on this machine."""

    name: str
    title: str
    state: State
    version: str | None = None  # of the framework
    hardware: tuple[str, ...] = ()  # what the backend and its hardware plugins can use
    devices: tuple[str, ...] | None = None  # what a probe found here
    detail: str = ""  # what is wrong and what to do about it


def survey(*, probe: bool = False) -> Iterator[Report]:
    """Yield the state of each registered backend. No framework is imported in this process.

    `probe` imports each framework that is installed, in a process of its own.
    """
    for name in backend_names():
        report = _report(name)
        yield _probed(report) if probe and report.state == "ready" else report


def probe_framework(backend: str) -> Iterator[dict[str, Any]]:
    """Worker: import the framework of `backend` and say what it finds."""
    yield {"event": "probe", **load_backend(backend).probe()}


def _report(name: str) -> Report:
    try:
        info = load_plugin(name).info
        missing = missing_framework(info)
    except BridgeError as error:
        return Report(name, name, "broken", detail=str(error))
    hardware = tuple(dict.fromkeys([*info.hardware, *hardware_names(name)]))
    if missing:
        detail = f"{missing}. Run: {info.install}"
        return Report(name, info.title, "not installed", hardware=hardware, detail=detail)
    return Report(
        name,
        info.title,
        "ready",
        framework_version(info),
        hardware,
        detail="; ".join(hardware_problems(name)),
    )


def _probed(report: Report) -> Report:
    try:
        (found,) = run_worker(probe_framework, {"backend": report.name}, timeout=PROBE_TIMEOUT)
    except BridgeError as error:
        return replace(report, state="broken", detail=str(error))
    return replace(report, version=found.get("version"), devices=tuple(found.get("devices", ())))
