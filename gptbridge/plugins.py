"""Find, check and open backends. Discovery reads package metadata and imports no framework."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy

from gptbridge import hookspecs
from gptbridge.errors import BackendBroken, BackendMissing, BridgeError, UsageError, printable
from gptbridge.hookspecs import API_VERSION, BackendInfo, Problem

if TYPE_CHECKING:
    from gptbridge.session import Device, DeviceKind, Session
    from gptbridge_specs import RunSpec

BACKENDS = "gptbridge.backends"
HARDWARE = "gptbridge.hardware"

_PREFIX = "gptbridge_"
_log = logging.getLogger(__name__)


def backend_names() -> list[str]:
    """Return the names of all backends that are registered, whether they work or not."""
    return sorted({entry.name for entry in metadata.entry_points(group=BACKENDS)})


def hardware_names(backend: str) -> list[str]:
    """Return the devices that hardware plugins add to `backend`."""
    names = {entry.name for entry in metadata.entry_points(group=HARDWARE)}
    return sorted(name.partition(":")[2] for name in names if name.startswith(f"{backend}:"))


def hardware_problems(backend: str) -> list[str]:
    """Return one line for each hardware plugin of `backend` that does not load."""
    return [str(error) for _, error in _hardware(backend) if isinstance(error, BackendBroken)]


def load_backend(name: str) -> Backend:
    """Return the backend called `name`, its framework installed but not imported.

    Raises BackendMissing for an unknown name or a framework that is absent or too old, and
    BackendBroken for a plugin that does not load or does not speak this plugin API.
    """
    backend = load_plugin(name)
    reason = missing_framework(backend.info)
    if reason:
        raise BackendMissing(reason, where=name, hint=f"Run: {backend.info.install}")
    return backend


def load_plugin(name: str) -> Backend:
    """Return the backend called `name`, whether its framework is installed or not."""
    manager = _manager()
    entry = _find(name)
    _register(manager, entry, _load(entry))
    info = _call(name, manager.hook.gptbridge_backend_info)
    if not isinstance(info, BackendInfo):
        raise BackendBroken("gptbridge_backend_info returns no BackendInfo", where=name, hint=_repair(entry))
    if info.api_version != API_VERSION:
        raise BackendBroken(
            f"speaks plugin API {info.api_version}; this gptbridge speaks {API_VERSION}",
            where=name,
            hint="Install versions of gptbridge and of the plugin that fit each other.",
        )
    return Backend(name, info, manager)


def missing_framework(info: BackendInfo) -> str | None:
    """Say what keeps the framework from being imported; None when all of it is installed."""
    from packaging.requirements import Requirement

    for text in info.requires:
        requirement = Requirement(text)
        version = _installed_version(requirement.name, info.modules)
        if version is None:
            return f"needs {text}, which is not installed"
        if not requirement.specifier.contains(version, prereleases=True):
            return f"needs {text}, but {version} is installed"
    return None


def framework_version(info: BackendInfo) -> str | None:
    """Return the installed version of the backend's first requirement."""
    from packaging.requirements import Requirement

    return _installed_version(Requirement(info.requires[0]).name, info.modules) if info.requires else None


def _stated(spec: RunSpec, field: str) -> str:
    """Return `field=value`, or the field alone where the spec has no such field or it is a section."""
    value: Any = spec
    for name in field.split("."):
        value = getattr(value, name, None)
    return f"{field}={value}" if isinstance(value, str | int | float) else field


class Backend:
    """A loaded backend plugin. `check` imports no framework; `probe` and `open` do."""

    def __init__(self, name: str, info: BackendInfo, manager: pluggy.PluginManager) -> None:
        self.name = name
        self.info = info
        self._manager = manager

    def problems(self, spec: RunSpec, device: DeviceKind | None = None) -> list[Problem]:
        """Return everything in `spec` that the backend cannot honour; `device` None takes the spec's."""
        wanted = spec.training.device
        named = device or (None if wanted == "auto" else wanted)
        answers = _call(self.name, self._manager.hook.gptbridge_check, spec=spec, device=named)
        found = [problem for answer in answers for problem in answer]
        devices = sorted({*self.info.hardware, *hardware_names(self.name)})
        if named and named not in devices and all(p.field != "training.device" for p in found):
            found.append(Problem("training.device", f"{self.info.title} runs on {', '.join(devices)}"))
        return found

    def check(self, spec: RunSpec, device: DeviceKind | None = None) -> None:
        """Raise UsageError with one line, `field=value: reason`, for each thing the backend cannot do."""
        lines = [
            f"{_stated(spec, problem.field)}: {problem.reason} (backend {self.name})"
            for problem in self.problems(spec, device)
        ]
        if lines:
            raise UsageError("\n".join(lines))

    def probe(self) -> dict[str, Any]:
        """Import the framework; return {"version": str, "devices": [str, ...]}. One framework a process."""
        self._refuse_second_framework()
        return dict(self._work(self._manager.hook.gptbridge_probe) or {})

    def open(self, spec: RunSpec) -> tuple[Session, Device]:
        """Import the framework, choose the device and build the model of `spec` on it.

        Raises UsageError for what the backend cannot do, BackendBroken when the framework does not
        work. The weights are undefined until they are imported.
        """
        from gptbridge.session import Device, Session

        self.check(spec)
        self._refuse_second_framework()
        self._register_hardware(spec.training.device)
        hook = self._manager.hook
        device = self._answer(Device, hook.gptbridge_setup_hardware, spec=spec)
        self.check(spec, device.kind)
        session: Session = self._answer(Session, hook.gptbridge_open_session, spec=spec, device=device)
        return session, device

    def notify(self, event: Mapping[str, Any]) -> None:
        """Show one event to the plugin; a plugin that fails to watch never ends a run."""
        try:
            self._manager.hook.gptbridge_event(event=event)
        except Exception as error:
            _log.warning("%s: gptbridge_event failed: %s", self.name, _describe(error))

    def _work(self, hook: Callable[..., Any], **arguments: Any) -> Any:
        """Call a hook that imports the framework; say what to do where that import fails."""
        try:
            return _call(self.name, hook, **arguments)
        except BackendBroken as error:
            # an import that failed leaves no module; a device's own OSError comes with the framework loaded
            absent = not all(module in sys.modules for module in self.info.modules)
            if isinstance(error.__cause__, ImportError) or (isinstance(error.__cause__, OSError) and absent):
                error.hint = f"Reinstall {self.info.title}: {self.info.install}. {error.hint}"
            raise

    def _answer(self, kind: Any, hook: Callable[..., Any], **arguments: Any) -> Any:
        answer = self._work(hook, **arguments)
        if isinstance(answer, kind):
            return answer
        if answer is None:
            raise BackendBroken(f"no plugin answers {hook.name}", where=self.name)  # type: ignore[attr-defined]
        absent = sorted(n for n in vars(kind) if n[0] != "_" and not hasattr(answer, n))
        raise BackendBroken(
            f"{hook.name} returns {type(answer).__name__}, not a {kind.__name__}; "  # type: ignore[attr-defined]
            f"it lacks {', '.join(absent)}",
            where=self.name,
        )

    def _refuse_second_framework(self) -> None:
        for name in backend_names():
            if name == self.name:
                continue
            try:
                others = load_plugin(name).info.modules
            except BridgeError:
                continue  # a plugin that does not load has brought no framework either
            present = [module for module in others if module in sys.modules]
            if present and not set(present) <= set(self.info.modules):
                raise BackendBroken(
                    f"cannot share a process with {name}: {present[0]} is already imported",
                    where=self.name,
                    hint="Start a new process for each backend.",
                )

    def _register_hardware(self, device: str) -> None:
        """Let hardware plugins answer before the backend: pluggy asks the last one registered first."""
        for entry, plugin in _hardware(self.name):
            if not isinstance(plugin, BackendBroken):
                if not self._manager.has_plugin(entry.name):
                    _register(self._manager, entry, plugin)
            elif entry.name == f"{self.name}:{device}":
                raise plugin
            else:
                _log.warning("%s", plugin)


def _find(name: str) -> metadata.EntryPoint:
    entries = list(metadata.entry_points(group=BACKENDS, name=name))
    if len(entries) == 1:
        return entries[0]
    if entries:
        packages = " and ".join(sorted(_package(entry) for entry in entries))
        raise BackendBroken(f"registered by {packages}", where=name, hint="Uninstall one of them.")
    names = backend_names()
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    raise BackendMissing(
        f"there is no backend called {printable(name)!r}",
        hint=f"{guess}Registered: {', '.join(names) or 'none'}.",
    )


def _hardware(backend: str) -> Iterator[tuple[metadata.EntryPoint, object]]:
    """Yield the hardware plugins of `backend`: each one's module, or the error that keeps it out."""
    for entry in metadata.entry_points(group=HARDWARE):
        if entry.name.partition(":")[0] == backend:
            try:
                module = _load(entry)
                _register(_manager(), entry, module)
            except BackendBroken as error:
                yield entry, error
            else:
                yield entry, module


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("gptbridge")
    manager.add_hookspecs(hookspecs)
    return manager


def _load(entry: metadata.EntryPoint) -> object:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        raise BackendBroken(
            f"the plugin module {entry.value} does not load: {_describe(error)}",
            where=entry.name,
            hint=_repair(entry),
        ) from error


def _register(manager: pluggy.PluginManager, entry: metadata.EntryPoint, module: object) -> None:
    """Check the hooks of a plugin, names, arguments and marks, and let the manager call them."""
    unmarked = [
        name
        for name, value in vars(module).items()
        if name.startswith(_PREFIX) and callable(value) and not hasattr(value, "gptbridge_impl")
    ]
    if unmarked:
        raise BackendBroken(f"{unmarked[0]} lacks @hookimpl", where=entry.name, hint=_repair(entry))
    try:
        manager.register(module, entry.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = ", ".join(sorted(name for name in vars(hookspecs) if name.startswith(_PREFIX)))
        reason = str(error).splitlines()[-1]
        raise BackendBroken(reason, where=entry.name, allowed=known, hint=_repair(entry)) from error


def _call(name: str, hook: Callable[..., Any], **arguments: Any) -> Any:
    """Call a hook; whatever a plugin raises that is no BridgeError says that the backend is broken."""
    try:
        return hook(**arguments)
    except BridgeError:
        raise
    except Exception as error:
        raise BackendBroken(
            f"{hook.name} failed: {_describe(error)}",  # type: ignore[attr-defined]
            where=name,
            hint="--debug shows the traceback.",
        ) from error


def _installed_version(distribution: str, modules: tuple[str, ...]) -> str | None:
    """Return a version from metadata alone; a build under a longer name (paddlepaddle-gpu) counts."""
    from packaging.utils import canonicalize_name

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        table = metadata.packages_distributions()
        prefix = canonicalize_name(distribution) + "-"
        builds = [build for module in modules for build in table.get(module, ())]
        return next((metadata.version(b) for b in builds if canonicalize_name(b).startswith(prefix)), None)


def _describe(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return printable(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def _package(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _repair(entry: metadata.EntryPoint) -> str:
    package = _package(entry)
    return "Reinstall it." if package == "gptbridge" else f"Update it, or run: pip uninstall {package}"
