"""Which tasks a command line selects."""

from collections.abc import Sequence

import pytest

from vila_core.errors import ConfigError, PluginError
from vila_core.plugins.hookspecs import Named
from vila_core.plugins.registry import Owner, Registered, Registry
from vila_eval import LocalFiles, Question, Task
from vila_eval.running.selection import select

OWNER = Owner("acme", "acme-benchmarks", "1.0")


def task(name: str, *tags: str, frames: int | None = None, video: bool = False) -> Task:
    return Task(
        name,
        LocalFiles("rows.jsonl", {}),
        lambda row: Question(row["id"], []),
        None,
        tags=tags,
        num_video_frames=frames,
        has_video=video,
    )


TASKS = (
    task("pope", "core", "local"),
    task("mme", "core", "local", "regression"),
    task("egoschema_val", "core", "video", video=True),
    task("videomme-8", "local", "video", frames=8, video=True),
    task("videomme-64", "local", "video", frames=64, video=True),
    task("vila/count", "local", "vila/blocks"),
    task("vila/word", "local", "vila/blocks"),
)


class NamedThing:
    name = "owner"


def registry(
    tasks: Sequence[Named] = TASKS, contested: dict[str, str] | None = None, failed: tuple[str, ...] = ()
) -> Registry[Named]:
    return Registry("task", {item.name: Registered(item, OWNER) for item in tasks}, contested or {}, failed)


def chosen(*names: str, tags_include: Sequence[str] = (), tags_exclude: Sequence[str] = ()) -> list[str]:
    return [planned.task.name for planned in select(registry(), names, tags_include, tags_exclude)]


def runs(frames: Sequence[int] | None, *names: str) -> list[tuple[str, int | None]]:
    return [
        (planned.folder, planned.num_video_frames) for planned in select(registry(), names, num_video_frames=frames)
    ]


def test_names_patterns_and_tags_select_once_each_in_order_of_registration() -> None:
    assert chosen("vila/word", "pope", "videomme-*", "core") == [
        "pope",
        "mme",
        "egoschema_val",
        "videomme-8",
        "videomme-64",
        "vila/word",
    ]
    assert chosen("vila/blocks") == ["vila/count", "vila/word"]
    assert chosen("*") == [one.name for one in TASKS]


def test_the_prefix_of_the_reference_is_dropped() -> None:
    assert chosen("lmms-pope", "lmms-videomme-64") == ["pope", "videomme-64"]


def test_tags_include_any_and_exclude_all() -> None:
    assert chosen(tags_include=["regression", "vila/blocks"]) == ["mme", "vila/count", "vila/word"]
    assert chosen(tags_include=["core"], tags_exclude=["video", "regression"]) == ["pope"]
    assert chosen("pope", "vila/count", tags_include=["core"]) == ["pope"]


def test_frames_run_open_video_tasks_once_each_and_filter_those_whose_frames_are_fixed() -> None:
    names = ("pope", "egoschema_val", "videomme-*")
    assert runs(None, *names) == [("pope", None), ("egoschema_val", None), ("videomme-8", 8), ("videomme-64", 64)]
    assert runs([8], *names) == [("pope", None), ("egoschema_val-8", 8), ("videomme-8", 8)]
    assert runs([64, 16], *names) == [
        ("pope", None),
        ("egoschema_val-64", 64),
        ("egoschema_val-16", 16),
        ("videomme-64", 64),
    ]


def test_frames_at_the_end_of_a_name_are_the_references_spelling() -> None:
    assert runs(None, "egoschema_val-8") == [("egoschema_val-8", 8)]
    assert runs([16], "egoschema_val-8", "egoschema_val") == [("egoschema_val-8", 8), ("egoschema_val-16", 16)]
    with pytest.raises(ConfigError, match=r"Unknown task or tag 'pope-8'\. Did you mean 'pope'"):
        runs(None, "pope-8")


def test_nothing_runs_by_accident() -> None:
    with pytest.raises(ConfigError, match=r"No task is selected.*--tasks"):
        select(registry())
    with pytest.raises(ConfigError, match="No task is selected"):
        select(registry(), tags_exclude=["video"])
    with pytest.raises(ConfigError, match="drop all 1"):
        select(registry(), ["pope"], tags_exclude=["local"])
    with pytest.raises(ConfigError, match="none of them with 16 frames"):
        select(registry(), ["videomme-*"], num_video_frames=[16])


def test_an_unknown_name_gets_the_nearest_not_the_whole_list() -> None:
    with pytest.raises(ConfigError) as error:
        select(registry(failed=("acme-video",)), ["videomme-46"])
    message = str(error.value)
    assert "Did you mean 'videomme-64' or 'videomme-8'" in message
    assert "`vila-eval list`" in message
    assert "vila/count" not in message
    assert "acme-video" in message


def test_an_unknown_tag_gets_the_known_ones() -> None:
    message = "Unknown tag 'locl'.*vila/blocks.*Did you mean 'local'"
    with pytest.raises(ConfigError, match=message):
        chosen(tags_include=["locl"])
    with pytest.raises(ConfigError, match=message):
        chosen("pope", tags_exclude=["locl"])


def test_a_name_that_two_distributions_register_is_refused_only_when_selected() -> None:
    tasks = registry(contested={"mme": "Two plugins register the task 'mme': a 1 and b 2. Uninstall one."})
    assert [planned.folder for planned in select(tasks, ["pope"])] == ["pope"]
    for names in (["mme"], ["core"], ["m*"]):
        with pytest.raises(PluginError, match="Two plugins register the task 'mme'"):
            select(tasks, names)


def test_a_registered_thing_that_is_no_task_is_reported_when_selected() -> None:
    tasks = registry([*TASKS, NamedThing()])
    assert len(select(tasks, ["local"])) == 6
    with pytest.raises(PluginError, match=r"acme-benchmarks 1\.0 .* registers the task 'owner', which is a NamedThing"):
        select(tasks, ["owner"])
