"""Selecting the tasks to run, and their frames, from names, patterns, tags and frame counts.

    select(load_plugins().tasks, names=["videomme-*", "vila/blocks"], num_video_frames=[8, 32])

The reference's way of naming is understood: "lmms-pope" is pope, "egoschema_val-8" is egoschema_val with 8 frames.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vila_core.errors import ConfigError, PluginError, unknown_name
from vila_eval.task import Task

if TYPE_CHECKING:
    from vila_core.plugins.hookspecs import Named
    from vila_core.plugins.registry import Registry
    from vila_eval.options import Planned

REFERENCE_PREFIX = "lmms-"


def select(
    tasks: Registry[Named],
    names: Sequence[str] = (),
    tags_include: Sequence[str] = (),
    tags_exclude: Sequence[str] = (),
    num_video_frames: Sequence[int] | None = None,
) -> list[Planned]:
    """Return the tasks to run, in order of registration.

    Args:
        tasks: the registered tasks.
        names: names of tasks, patterns ("videomme-*"), or tags. A task is selected if any of them matches.
        tags_include: keep tasks with any of these tags. Without names, select from all tasks.
        tags_exclude: drop tasks with any of these tags.
        num_video_frames: a video task runs once for each number, in the folder "<task>-<frames>". A task that defines
            its own number is kept if that is among them. None: the task or the model decides.

    Raises:
        ConfigError: an unknown name or tag, nothing selected, or nothing left.
        PluginError: two distributions register a selected task, or a selected object is not a task.
    """
    if not names and not tags_include:
        raise ConfigError(
            "No task is selected. Name tasks, patterns or tags with --tasks, or tags with --tags-include "
            "(`vila-eval list` shows them; --tasks '*' means all)."
        )
    tags = _tags_of(tasks)
    for tag in (*tags_include, *tags_exclude):
        if tag not in tags:
            raise ConfigError(unknown_name("tag", tag, tags))
    chosen = _named(tasks, tags, names) if names else {name: [] for name in tasks.names()}
    kept = {
        name: frames
        for name, frames in chosen.items()
        if (not tags_include or any(name in tags[tag] for tag in tags_include))
        and not any(name in tags[tag] for tag in tags_exclude)
    }
    planned = [
        one
        for name in tasks.names()
        if name in kept
        for one in _plan(checked(tasks, name), kept[name], num_video_frames)
    ]
    if not planned:
        raise ConfigError(
            f"No task is left: {len(chosen)} selected, {len(kept)} after --tags-include and --tags-exclude, "
            f"none of them with {_listed(num_video_frames) if num_video_frames else 'any number of'} frames."
            if kept
            else f"No task is left: --tags-include and --tags-exclude drop all {len(chosen)} that are named."
        )
    return planned


def checked(tasks: Registry[Named], name: str) -> Task:
    """Return a registered task. Raises `PluginError` if two distributions register it, or if it is not a `Task`."""
    found = tasks.get(name)
    if not isinstance(found, Task):
        raise PluginError(
            f"{tasks.owner(name)} registers the task '{name}', which is a {type(found).__name__}. "
            "Expected a vila_eval.Task: fix or uninstall the plugin."
        )
    return found


def _tags_of(tasks: Registry[Named]) -> Mapping[str, set[str]]:
    """Return the names of the tasks by tag."""
    tags: dict[str, set[str]] = {}
    for entry in tasks.items():
        for tag in entry.item.tags if isinstance(entry.item, Task) else ():
            tags.setdefault(tag, set()).add(entry.name)
    return tags


def _named(tasks: Registry[Named], tags: Mapping[str, set[str]], names: Sequence[str]) -> dict[str, list[int | None]]:
    """Return the tasks that `names` select, each with the frame counts in its names (None: not given)."""
    chosen: dict[str, list[int | None]] = {}
    for given in names:
        for name, frames in _matches(tasks, tags, given):
            of_task = chosen.setdefault(name, [])
            if frames not in of_task:
                of_task.append(frames)
    return chosen


def _matches(tasks: Registry[Named], tags: Mapping[str, set[str]], given: str) -> Iterator[tuple[str, int | None]]:
    name = given if given in tasks else given.removeprefix(REFERENCE_PREFIX)
    stem, _, frames = name.rpartition("-")
    if name in tasks:
        yield name, None
    elif name in tags:
        yield from ((task, None) for task in tags[name])
    elif matching := [task for task in tasks.names() if fnmatchcase(task, name)]:
        yield from ((task, None) for task in matching)
    elif (
        frames.isdecimal()
        and len(frames) < 10
        and int(frames) > 0
        and stem in tasks
        and _takes_frames(checked(tasks, stem))
    ):
        yield stem, int(frames)
    else:
        raise ConfigError(_unknown(tasks, tags, given))


def _takes_frames(task: Task) -> bool:
    return task.has_video and task.num_video_frames is None


def _unknown(tasks: Registry[Named], tags: Iterable[str], given: str) -> str:
    nearest = difflib.get_close_matches(given.removeprefix(REFERENCE_PREFIX), [*tasks.names(), *tags], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(name) for name in nearest)}?" if nearest else ""
    failed = (
        f" These plugins did not load and may hold it: {', '.join(tasks.failed)} (see `vila plugins`)."
        if tasks.failed
        else ""
    )
    return f"Unknown task or tag '{given}'.{hint} `vila-eval list` shows all of them.{failed}"


def _plan(task: Task, asked: Sequence[int | None], num_video_frames: Sequence[int] | None) -> Iterator[Planned]:
    from vila_eval.options import Planned

    if not _takes_frames(task):
        fixed = task.num_video_frames
        if fixed is None or not num_video_frames or fixed in num_video_frames:
            yield Planned(task, task.name, fixed)
        return
    wanted: list[int | None] = []
    for frames in asked or (None,):
        wanted += (num_video_frames or (None,)) if frames is None else (frames,)
    for frames in dict.fromkeys(wanted):
        yield Planned(task, task.name if frames is None else f"{task.name}-{frames}", frames)


def _listed(frames: Sequence[int]) -> str:
    return "/".join(map(str, frames))
