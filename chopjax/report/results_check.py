"""Whether a file is what lm-evaluation-harness and `chopjax score` write, as far as it is read."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def problems(content: Mapping[str, Any]) -> list[str]:
    """Each field that has a type which it cannot have, by its place in the file."""
    results = content.get("results")
    if not isinstance(results, dict) or not all(isinstance(v, dict) for v in results.values()):
        return ["not a results file of lm-evaluation-harness: no object `results` in it"]
    faults = []
    for task, values in results.items():
        faults += _wrong(
            f"results.{task}",
            {name: v for name, v in values.items() if "," in name},
            # "N/A" stands for a standard error that nobody has; a number is one that a float holds
            lambda value: isinstance(value, str | None) or is_number(value),
        )
        faults += _wrong(
            f"results.{task}",
            {"sample_len": values.get("sample_len")},
            lambda value: value is None or is_number(value),
        )
        faults += _objects(f"results.{task}", values, "mean_of", _is_text)
    faults += _objects("", content, "group_subtasks", _is_names)
    faults += _objects("", content, "higher_is_better", _is_object)
    faults += _objects("", content, "n-samples", _is_object)
    faults += _objects("", content, "chance", lambda value: value is None or is_number(value))
    faults += _objects("", content, "config", lambda value: True)
    faults += _objects("", content, "model_size", is_number)
    if not faults and (group := _own_descendant(content.get("group_subtasks") or {})):
        faults.append(f"group_subtasks.{group}: is a part of itself")
    return faults


def is_number(value: Any) -> bool:
    """One that a float holds, NaN and infinity included; True and False are none."""
    try:
        return not isinstance(value, bool | str) and isinstance(float(value), float)
    except (TypeError, ValueError, OverflowError):
        return False


def _objects(
    place: str, values: Mapping[str, Any], name: str, right: Callable[[Any], bool]
) -> list[str]:
    """A field that is absent, null or an object all of whose values are right."""
    place = f"{place}.{name}" if place else name
    value = values.get(name)
    if value is None:
        return []
    if not isinstance(value, dict):
        return [f"{place}: an object is needed, found {reprlib.repr(value)}"]
    return _wrong(place, value, right)


def _wrong(place: str, values: Mapping[str, Any], right: Callable[[Any], bool]) -> list[str]:
    return [
        f"{place}.{reprlib.repr(name)[1:-1]}: found {reprlib.repr(value)}"
        for name, value in values.items()
        if not right(value)
    ]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict | None)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _own_descendant(groups: Mapping[str, Sequence[str]]) -> str | None:
    """A group that lies within itself: without one, going down from group to group ends."""
    done: set[str] = set()
    for start in groups:
        path: list[tuple[str, int]] = [(start, 0)]
        while path:
            group, place = path.pop()
            children = groups.get(group, ())
            if place == len(children):
                done.add(group)
                continue
            path.append((group, place + 1))
            child = children[place]
            if child != group and any(child == above for above, _ in path):
                return child
            if child != group and child not in done:
                path.append((child, 0))
    return None
