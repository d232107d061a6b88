"""A loaded backend: its checks before launch, its framework behind hooks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from gptbridge.errors import BackendBroken, BackendMissing, BridgeError, UsageError
from gptbridge.hookspecs import API_VERSION, BackendInfo, Launch, Problem
from gptbridge.plugins.finding import backend_names, find, hardware_names, missing_framework, repair_hint
from gptbridge.plugins.loading import call, describe, load_hardware, load_module, new_manager, register

if TYPE_CHECKING:
    from gptbridge.process.world import World
    from gptbridge.session import Device, DeviceKind, LanguageModel, Trainer
    from gptbridge.weights.layouts.arrays import Read
    from gptbridge_specs import RunSpec

_log = logging.getLogger(__name__)


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
    manager = new_manager()
    entry = find(name)
    register(manager, entry, load_module(entry))
    info = call(name, manager.hook.gptbridge_backend_info)
    if not isinstance(info, BackendInfo):
        raise BackendBroken(
            "gptbridge_backend_info returns no BackendInfo", where=name, hint=repair_hint(entry)
        )
    if info.api_version != API_VERSION:
        raise BackendBroken(
            f"speaks plugin API {info.api_version}; this gptbridge speaks {API_VERSION}",
            where=name,
            hint="Install versions of gptbridge and of the plugin that fit each other.",
        )
    return Backend(name, info, manager)


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
        answers = call(self.name, self._manager.hook.gptbridge_check, spec=spec, device=named)
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

    def launch_command(self, launch: Launch, command: Sequence[str]) -> list[str]:
        """Return the command that starts `command` once for each rank; BackendBroken where there is none."""
        hook = self._manager.hook.gptbridge_launch_command
        answer = call(self.name, hook, launch=launch, command=command)
        if answer is None:
            raise BackendBroken("no plugin answers gptbridge_launch_command", where=self.name)
        return list(answer)

    def rank(self) -> int | None:
        """Return which rank the launcher has made this process; None where it does not say."""
        number: int | None = call(self.name, self._manager.hook.gptbridge_rank)
        return number

    def probe(self) -> dict[str, Any]:
        """Import the framework; return {"version": str, "devices": [str, ...]}. One framework a process."""
        self._refuse_second_framework()
        return dict(self._work(self._manager.hook.gptbridge_probe) or {})

    def open_model(self, spec: RunSpec) -> LanguageModel:
        """Import the framework, choose the device and build the model of `spec` on it, to be read.

        Raises as `open_trainer` does. The weights are undefined until they are written.
        """
        from gptbridge.session import LanguageModel

        device, world = self._enter(spec)
        open_model = self._manager.hook.gptbridge_open_model
        model: LanguageModel = self._answer(LanguageModel, open_model, spec=spec, device=device, world=world)
        return model

    def open_trainer(self, spec: RunSpec) -> tuple[Trainer, Device, World]:
        """Import the framework, choose the device, meet the other ranks, build model and optimizer.

        Raises UsageError for what the backend cannot do, BackendBroken when the framework does not
        work. The weights are undefined until they are written.
        """
        from gptbridge.session import Trainer

        device, world = self._enter(spec)
        open_trainer = self._manager.hook.gptbridge_open_trainer
        trainer: Trainer = self._answer(Trainer, open_trainer, spec=spec, device=device, world=world)
        return trainer, device, world

    def export(self, spec: RunSpec, format: str, read: Read, folder: Path) -> list[str]:
        """Import the framework and let it write the model of `spec` into `folder`; return the names of files.

        Raises as `open_trainer` does. `read` has the weights.
        """
        device, _ = self._enter(spec)
        export = self._manager.hook.gptbridge_export
        files: list[str] = self._answer(
            list, export, spec=spec, device=device, format=format, read=read, folder=folder
        )
        return files

    def _enter(self, spec: RunSpec) -> tuple[Device, World]:
        """Prepare this process and return its device and its place among the ranks."""
        from gptbridge.process.world import World
        from gptbridge.session import Device

        self.check(spec)
        self._refuse_second_framework()
        self._register_hardware(spec.training.device)
        hook = self._manager.hook
        device: Device = self._answer(Device, hook.gptbridge_setup_hardware, spec=spec)
        self.check(spec, device.kind)
        world = self._work(hook.gptbridge_join, spec=spec, device=device)
        return device, World() if world is None else world

    def notify(self, event: Mapping[str, Any]) -> None:
        """Show one event to the plugin; a plugin that fails to watch never ends a run."""
        try:
            self._manager.hook.gptbridge_event(event=event)
        except Exception as error:
            _log.warning("%s: gptbridge_event failed: %s", self.name, describe(error))

    def _work(self, hook: Callable[..., Any], **arguments: Any) -> Any:
        """Call a hook that imports the framework; say what to do where that import fails."""
        try:
            return call(self.name, hook, **arguments)
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
        for entry, plugin in load_hardware(self.name):
            if not isinstance(plugin, BackendBroken):
                if not self._manager.has_plugin(entry.name):
                    register(self._manager, entry, plugin)
            elif entry.name == f"{self.name}:{device}":
                raise plugin
            else:
                _log.warning("%s", plugin)


def _stated(spec: RunSpec, field: str) -> str:
    """Return `field=value`, or the field alone where the spec has no such field or it is a section."""
    value: Any = spec
    for name in field.split("."):
        value = getattr(value, name, None)
    return f"{field}={value}" if isinstance(value, str | int | float) else field
