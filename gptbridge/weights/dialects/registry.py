"""Every dialect by name: registered in package metadata, imported when it is needed."""

from __future__ import annotations

import sys
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

from gptbridge.errors import DialectBroken, UsageError, printable

if TYPE_CHECKING:
    from gptbridge.weights.dialects.dialect import Dialect

GROUP = "gptbridge.dialects"


class Known(NamedTuple):
    """The dialects that load, the preferred ones first, and what is wrong with the others."""

    dialects: tuple[Dialect, ...]
    broken: tuple[DialectBroken, ...]


def dialect_names() -> list[str]:
    """Return the names of all dialects that are registered, whether they work or not; nothing is imported."""
    return sorted(_entries(tuple(sys.path)))


def find_dialect(name: str) -> Dialect:
    """Return the dialect called `name`, or by an alias; UsageError for none, DialectBroken for a bad one."""
    entries = _entries(tuple(sys.path))
    if name in entries:
        return _load(name, entries[name])
    for dialect in known_dialects().dialects:
        if name in dialect.aliases:
            return dialect
    from gptbridge_specs.errors import suggestion

    names = dialect_names()
    guess = suggestion(name, names)
    raise UsageError(f"there is no dialect {printable(name)!r}.{guess}", allowed=", ".join(names))


def known_dialects() -> Known:
    """Return every dialect that loads; one that does not keeps none of the others from their work."""
    dialects, broken = [], []
    for name, entries in _entries(tuple(sys.path)).items():
        try:
            dialects.append(_load(name, entries))
        except DialectBroken as error:
            broken.append(error)
    return Known(tuple(sorted(dialects, key=lambda each: (each.preference, each.name))), tuple(broken))


@cache
def _entries(path: tuple[str, ...]) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Return what is registered under each name, for the packages in `path`."""
    found: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for entry in metadata.entry_points(group=GROUP):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def _load(name: str, entries: tuple[metadata.EntryPoint, ...]) -> Dialect:
    """Return the dialect that the one entry point of its name leads to."""
    from gptbridge.plugins.finding import package_of, repair_hint
    from gptbridge.plugins.loading import describe
    from gptbridge.weights.dialects.dialect import Dialect

    entry = entries[0]
    if len(entries) > 1:
        packages = " and ".join(sorted(map(package_of, entries)))
        raise DialectBroken(f"registered by {packages}", where=name, hint="Uninstall one of them.")
    hint = repair_hint(entry)
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:
        problem = f"{entry.value} of {package_of(entry)} does not load: {describe(error)}"
        raise DialectBroken(problem, where=name, hint=hint) from error
    if not isinstance(loaded, Dialect) or loaded.name != name:
        problem = f"{entry.value} of {package_of(entry)} is no Dialect called {name!r}"
        raise DialectBroken(problem, where=name, hint=hint)
    return loaded
