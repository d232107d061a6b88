"""Import a plugin's module, check its hooks, call them; one line for what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import pluggy

from gptbridge import hookspecs
from gptbridge.errors import BackendBroken, BridgeError, printable
from gptbridge.plugins.finding import HARDWARE, repair_hint

_PREFIX = "gptbridge_"


def new_manager() -> pluggy.PluginManager:
    """Return a manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager("gptbridge")
    manager.add_hookspecs(hookspecs)
    return manager


def load_module(entry: metadata.EntryPoint) -> object:
    """Return the module that `entry` names; BackendBroken where it does not import."""
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        raise BackendBroken(
            f"the plugin module {entry.value} does not load: {describe(error)}",
            where=entry.name,
            hint=repair_hint(entry),
        ) from error


def register(manager: pluggy.PluginManager, entry: metadata.EntryPoint, module: object) -> None:
    """Check the hooks of a plugin, names, arguments and marks, and let the manager call them."""
    unmarked = [
        name
        for name, value in vars(module).items()
        if name.startswith(_PREFIX) and callable(value) and not hasattr(value, "gptbridge_impl")
    ]
    if unmarked:
        raise BackendBroken(f"{unmarked[0]} lacks @hookimpl", where=entry.name, hint=repair_hint(entry))
    try:
        manager.register(module, entry.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = ", ".join(sorted(name for name in vars(hookspecs) if name.startswith(_PREFIX)))
        reason = str(error).splitlines()[-1]
        raise BackendBroken(reason, where=entry.name, allowed=known, hint=repair_hint(entry)) from error


def call(name: str, hook: Callable[..., Any], **arguments: Any) -> Any:
    """Call a hook; whatever a plugin raises that is no BridgeError says that the backend is broken."""
    try:
        return hook(**arguments)
    except BridgeError:
        raise
    except Exception as error:
        raise BackendBroken(
            f"{hook.name} failed: {describe(error)}",  # type: ignore[attr-defined]
            where=name,
            hint="--debug shows the traceback.",
        ) from error


def describe(error: BaseException) -> str:
    """Return the type and the first line of `error`."""
    first = str(error).strip().partition("\n")[0]
    return printable(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def load_hardware(backend: str) -> Iterator[tuple[metadata.EntryPoint, object]]:
    """Yield the hardware plugins of `backend`: each one's module, or the error that keeps it out."""
    for entry in metadata.entry_points(group=HARDWARE):
        if entry.name.partition(":")[0] == backend:
            try:
                module = load_module(entry)
                register(new_manager(), entry, module)
            except BackendBroken as error:
                yield entry, error
            else:
                yield entry, module


def hardware_problems(backend: str) -> list[str]:
    """Return one line for each hardware plugin of `backend` that does not load."""
    return [str(error) for _, error in load_hardware(backend) if isinstance(error, BackendBroken)]
