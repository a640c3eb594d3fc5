"""Plugins by entry point: one is loaded, by name, when a study asks for it; built-ins are registered the same way."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from polyclinic.core.errors import PluginError


def names(group: str) -> tuple[str, ...]:
    """Names installed under ``polyclinic.<group>``, sorted."""
    return tuple(sorted({point.name for point in _points(group)}))


def load(group: str, name: str) -> Any:
    """The object that plugin ``name`` of ``polyclinic.<group>`` points to.

    Raises:
        PluginError: no such plugin (the error lists what there is), two of that name, or its import fails.
    """
    found = {point.value: point for point in _points(group) if point.name == name}
    if not found:
        near = get_close_matches(name, names(group), 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise PluginError(f"no plugin '{name}' in {group}", remedy=f"{hint}installed: {', '.join(names(group))}")
    if len(found) > 1:
        raise PluginError(
            f"plugin '{name}' in {group} is registered {len(found)} times: {', '.join(sorted(found))}",
            remedy="uninstall all but one of the packages that register it",
        )
    (point,) = found.values()
    try:
        return point.load()
    except (ImportError, AttributeError) as failure:
        raise PluginError(f"plugin '{name}' ({point.value}) cannot be imported: {failure}", where=group) from failure


def _points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"polyclinic.{group}"))
