"""Which plugins are registered and which frameworks are installed: package metadata, nothing imported."""

from __future__ import annotations

import difflib
import re
from importlib import metadata

from gptbridge.errors import BackendBroken, BackendMissing, printable
from gptbridge.hookspecs import BackendInfo

BACKENDS = "gptbridge.backends"
HARDWARE = "gptbridge.hardware"


def backend_names() -> list[str]:
    """Return the names of all backends that are registered, whether they work or not."""
    return sorted({entry.name for entry in metadata.entry_points(group=BACKENDS)})


def hardware_names(backend: str) -> list[str]:
    """Return the devices that hardware plugins add to `backend`."""
    names = {entry.name for entry in metadata.entry_points(group=HARDWARE)}
    return sorted(name.partition(":")[2] for name in names if name.startswith(f"{backend}:"))


def find(name: str) -> metadata.EntryPoint:
    """Return the one entry point called `name`; BackendMissing for none, BackendBroken for several."""
    entries = list(metadata.entry_points(group=BACKENDS, name=name))
    if len(entries) == 1:
        return entries[0]
    if entries:
        packages = " and ".join(sorted(package_of(entry) for entry in entries))
        raise BackendBroken(f"registered by {packages}", where=name, hint="Uninstall one of them.")
    names = backend_names()
    short = ".*".join(map(re.escape, name))  # ms is mindspore
    close = [*difflib.get_close_matches(name, names, n=1), *(each for each in names if re.match(short, each))]
    guess = f"Did you mean {close[0]!r}? " if close else ""
    raise BackendMissing(
        f"there is no backend called {printable(name)!r}",
        hint=f"{guess}Registered: {', '.join(names) or 'none'}.",
    )


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


def package_of(entry: metadata.EntryPoint) -> str:
    """Return the name of the package that registers `entry`."""
    return entry.dist.name if entry.dist else entry.value


def repair_hint(entry: metadata.EntryPoint) -> str:
    """Return what to do about a plugin that does not work."""
    package = package_of(entry)
    return "Reinstall it." if package == "gptbridge" else f"Update it, or run: pip uninstall {package}"


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
