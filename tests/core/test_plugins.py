"""Plugins: distributions installed with pip, and small ones written here for each kind of failure."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tests.programs import run_program

from vila_core.errors import ConfigError, PluginError
from vila_core.plugins import loader as plugin_loader
from vila_core.plugins.loader import load_commands, load_plugin_file, load_plugins
from vila_core.plugins.registration import Plugins

TINY = Path(__file__).parents[1] / "parity" / "data" / "golden" / "nvila_lite_56" / "checkpoint"
DISTRIBUTIONS = Path(__file__).parents[1] / "plugins"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per test distribution, as `pip install --target` creates it."""
    folders: dict[str, Path] = {}
    for name in ("good", "broken", "colliding"):
        folders[name] = tmp_path_factory.mktemp(name)
        source = DISTRIBUTIONS / f"vila-plugin-{name}"
        flags = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-cache-dir"]
        command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(folders[name]), str(source)]
        done = run_program(command)
        assert done.returncode == 0, done.stderr
    return folders


def vila(
    *arguments: str, path: list[Path], program: str = "main", **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VILA_")}
    environment["PYTHONPATH"] = os.pathsep.join([*(str(folder) for folder in path), os.environ.get("PYTHONPATH", "")])
    script = f"import sys; from vila_core.cli.{program} import main; main(sys.argv[1:])"
    return run_program([sys.executable, "-c", script, *arguments], env={**environment, **variables})


def plugin_list(*, path: list[Path], **variables: str) -> dict[str, dict[str, object]]:
    done = vila("plugins", "--json", path=path, **variables)
    assert done.returncode == 0, done.stderr
    return {entry["name"]: entry for entry in json.loads(done.stdout)}


def test_good_plugin_is_listed_with_its_hooks(site: dict[str, Path]) -> None:
    found = plugin_list(path=[site["good"]])
    assert (found["good"]["distribution"], found["good"]["version"]) == ("vila-plugin-good", "1.2.0")
    assert found["good"]["provides"] == {"vila_vision_towers": ["patch_mean"], "vila_chat_templates": ["plain_dialog"]}
    assert found["good"]["hooks"] == ["vila_vision_towers", "vila_chat_templates"]
    assert found["good"]["error"] is None
    table = vila("plugins", path=[site["good"]]).stdout
    assert "patch_mean" in table
    assert "vila-plugin-good 1.2.0" in table


def test_broken_plugin_is_reported_and_others_load(site: dict[str, Path]) -> None:
    done = vila("plugins", "--json", path=[site["broken"], site["good"]])
    assert done.returncode == 0
    found = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert found["broken"]["hooks"] == []
    assert "ModuleNotFoundError" in found["broken"]["error"]
    assert "a_package_that_nobody_has" in found["broken"]["error"]
    assert "plugin.py" in found["broken"]["traceback"]
    assert found["good"]["error"] is None
    assert "vila-plugin-broken 0.3.1" in done.stderr
    assert "a_package_that_nobody_has" in done.stderr


def test_strict_mode_makes_a_broken_plugin_fatal(site: dict[str, Path]) -> None:
    done = vila("plugins", path=[site["broken"]], VILA_STRICT_PLUGINS="1")
    assert done.returncode == 2
    assert "vila-plugin-broken 0.3.1" in done.stderr
    assert "a_package_that_nobody_has" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in vila("plugins", "--debug", path=[site["broken"]], VILA_STRICT_PLUGINS="1").stderr


def test_collision_names_both_distributions_and_rolls_back_the_later(site: dict[str, Path]) -> None:
    found = plugin_list(path=[site["good"], site["colliding"]])
    failed = {name for name, entry in found.items() if entry["error"]}
    assert failed == {"colliding-core", "good"}
    assert "vila-plugin-good 1.2.0" in str(found["good"]["error"])
    assert "vila-plugin-colliding 0.9.0" in str(found["good"]["error"])
    assert "'patch_mean'" in str(found["good"]["error"])
    assert found["good"]["hooks"] == []
    assert "vila-core" in str(found["colliding-core"]["error"])
    assert "vila-plugin-colliding 0.9.0" in str(found["colliding-core"]["error"])
    strict = vila("plugins", path=[site["good"], site["colliding"]], VILA_STRICT_PLUGINS="1")
    assert strict.returncode == 2
    assert "vila-plugin-colliding 0.9.0" in strict.stderr


def test_vila_plugins_variable_selects_plugins(site: dict[str, Path]) -> None:
    path = [site["good"], site["broken"], site["colliding"]]
    assert set(plugin_list(path=path, VILA_PLUGINS="")) == {"builtins"}
    selected = plugin_list(path=path, VILA_PLUGINS="good, colliding-core")
    assert set(selected) == {"builtins", "good", "colliding-core"}
    assert selected["good"]["error"] is None
    unknown = vila("plugins", path=path, VILA_PLUGINS="goood")
    assert unknown.returncode == 2
    assert "Unknown plugin 'goood'" in unknown.stderr
    assert "Did you mean 'good'?" in unknown.stderr
    assert "colliding-core" in unknown.stderr


def test_checkpoint_with_a_plugins_tower_and_template_answers(site: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    shutil.copytree(TINY, checkpoint)
    width = json.loads((checkpoint / "vision_tower" / "config.json").read_text())["hidden_size"]
    tower = {"model_type": "patch_mean", "image_size": 56, "patch_size": 14, "hidden_size": width}
    (checkpoint / "vision_tower" / "config.json").write_text(json.dumps(tower))
    weights = {"project.weight": np.ones((width, 3), np.float32), "project.bias": np.zeros(width, np.float32)}
    save_file(weights, checkpoint / "vision_tower" / "model.safetensors")
    Image.new("RGB", (80, 80), (200, 30, 30)).save(tmp_path / "red.png")
    arguments = [
        "-m",
        str(checkpoint),
        "--media",
        str(tmp_path / "red.png"),
        "--text",
        "colour?",
        "--max-new-tokens",
        "4",
        "--json",
    ]
    answered = vila(*arguments, path=[site["good"]], program="infer")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["usage"]["media_tokens"] > 0
    without = vila(*arguments, path=[], program="infer")
    assert without.returncode == 2
    assert "vision tower 'patch_mean'" in without.stderr
    assert (
        "plain_dialog" in vila(*arguments, "--conv-mode", "plain_dialogue", path=[site["good"]], program="infer").stderr
    )


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution (version 1.0) with one plugin module on the path: `install("name", source)`."""
    modules: list[str] = []
    monkeypatch.delenv("VILA_PLUGINS", raising=False)
    monkeypatch.delenv("VILA_STRICT_PLUGINS", raising=False)
    plugin_loader._load.cache_clear()

    def install(name: str, source: str, *, target: str | None = None) -> None:
        module = f"plugin_under_test_{name}"
        folder = tmp_path / name
        (folder / f"dist_{name}-1.0.dist-info").mkdir(parents=True)
        (folder / f"dist_{name}-1.0.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.0\n"
        )
        (folder / f"dist_{name}-1.0.dist-info" / "entry_points.txt").write_text(
            f"[vila]\n{name} = {target or module}\n"
        )
        (folder / f"{module}.py").write_text(
            f"import vila_core\nfrom vila_core import Command, Component, hookimpl\n{source}"
        )
        modules.append(module)
        monkeypatch.syspath_prepend(str(folder))

    yield install
    for module in modules:
        sys.modules.pop(module, None)
    plugin_loader._load.cache_clear()


def a_task(name: str) -> str:
    return f"""
class Task:
    name = {name!r}

@hookimpl
def vila_tasks():
    return [Task()]
"""


def a_projector(name: str) -> str:
    return f"""
from vila_core.config import ProjectorConfig

@hookimpl
def vila_projectors():
    return [Component({name!r}, ProjectorConfig, print)]
"""


def error_of(plugins: Plugins, name: str) -> str:
    (info,) = [info for info in plugins.infos if info.owner.plugin == name]
    assert info.provides == {}
    assert info.error is not None
    return info.error


def test_registered_objects_carry_their_owner(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("vqa", a_task("counting"))
    monkeypatch.setenv("VILA_PLUGINS", "vqa")
    tasks = load_plugins().tasks
    assert tasks.names() == ("counting",)
    assert tasks.get("counting").name == "counting"
    assert (tasks.owner("counting").distribution, tasks.owner("counting").version) == ("dist-vqa", "1.0")
    assert [entry.owner.plugin for entry in tasks.items()] == ["vqa"]
    assert load_plugins() is load_plugins()


def test_unknown_name_suggests_the_nearest_and_names_plugins_that_failed(install: Install) -> None:
    install("lost", "import nothing_like_it")
    with pytest.raises(
        ConfigError,
        match=r"Unknown vision tower 'siglp'\. Known: clip, .*Did you mean 'siglip'\?.* did not load .*: lost",
    ):
        load_plugins().vision_towers.get("siglp")


def test_plugin_object_instead_of_module(install: Install) -> None:
    source = """
class Plugin:
    @hookimpl
    def vila_commands(self):
        return (Command("hello", "Say hello.", lambda: print),)

plugin = Plugin()
"""
    install("instance", source, target="plugin_under_test_instance:plugin")
    assert "hello" in load_plugins().commands


def test_help_lists_the_commands_of_plugins_without_calling_their_other_hooks(install: Install) -> None:
    install(
        "half", "@hookimpl\ndef vila_commands():\n    return [Command('half', 'Half.', lambda: print)]\n" + a_task("")
    )
    assert "half" in load_commands()
    with pytest.raises(ConfigError, match=r"Unknown command 'half'.*did not load and may hold it: half"):
        load_plugins().commands.get("half")
    assert "every task needs a name" in error_of(load_plugins(), "half")
    assert "half" not in load_commands()


FAILURES = {
    "import_exit": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "hook_raises": ("@hookimpl\ndef vila_tasks():\n    raise KeyError('mmmu')", "KeyError: 'mmmu'"),
    "returns_none": ("@hookimpl\ndef vila_tasks():\n    pass", "vila_tasks() must return a sequence, got NoneType"),
    "returns_generator": (
        "@hookimpl\ndef vila_tasks():\n    yield 1",
        "vila_tasks() must return a sequence, got generator",
    ),
    "returns_string": ("@hookimpl\ndef vila_tasks():\n    return 'mmmu'", "must return a sequence, got str"),
    "nameless": ("@hookimpl\ndef vila_tasks():\n    return [object()]", "every task needs a name"),
    "duplicate_inside": (a_task("a").replace("[Task()]", "[Task(), Task()]"), "two tasks named 'a'"),
    "not_a_component": (
        a_task("a").replace("vila_tasks", "vila_projectors"),
        "expected a vila_core.Component, got Task",
    ),
    "wrong_config_type": (
        a_projector("t").replace("vila_projectors", "vila_vision_towers"),
        "('t'): config_type must be a subclass of vila_core.config.VisionTowerConfig",
    ),
    "not_a_format": (a_task("a").replace("vila_tasks", "vila_checkpoint_formats"), "with name, detect, read and write"),
    "not_a_template": (a_task("a").replace("vila_tasks", "vila_chat_templates"), "expected a chat template"),
    "not_a_command": (a_task("a").replace("vila_tasks", "vila_commands"), "expected a vila_core.Command, got Task"),
    "not_a_quantizer": (
        a_task("a").replace("vila_tasks", "vila_quantizers"),
        "expected a quantizer (an object with name, quantize_block)",
    ),
    "not_a_kernel": (
        a_task("a").replace("vila_tasks", "vila_kernels"),
        "expected a kernel (an object with name, refusal, pack, multiply)",
    ),
    "unknown_hook": ("@hookimpl\ndef vila_vision_tower():\n    return []", "Unknown hook 'vila_vision_tower'"),
    "removed_hook": ("@hookimpl\ndef vila_trainers():\n    return []", "'vila_trainers' was removed in hook API 2"),
    "unmarked": ("def vila_tasks():\n    return []", "vila_tasks is not marked as a hook"),
    "takes_arguments": ("@hookimpl\ndef vila_tasks(config):\n    return []", "vila_tasks"),
    "wrapper": ("@hookimpl(wrapper=True)\ndef vila_tasks():\n    return (yield)", "vila_tasks is a hook wrapper"),
    "other_hook_api": ("VILA_HOOK_API = 99", "hook API 99"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_plugin_is_rolled_back(
    failure: str, install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, expected = FAILURES[failure]
    # A valid hook beside the failing one shows that the whole plugin is rolled back.
    install(
        failure,
        f"{source}\n\n@hookimpl\ndef vila_commands():\n    return [Command('left-behind', '', lambda: print)]\n"
        if "vila_commands" not in source
        else source,
    )
    install("zz_later", a_task("works"))
    plugins = load_plugins()
    assert expected in error_of(plugins, failure)
    assert "left-behind" not in plugins.commands
    assert "a" not in plugins.tasks
    assert "works" in plugins.tasks, "a plugin after the failing one is still loaded"
    assert f"dist-{failure} 1.0" in caplog.text
    assert expected in caplog.text
    monkeypatch.setenv("VILA_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match=f"dist-{failure} 1.0"):
        load_plugins()


def test_name_of_two_plugins_is_refused_and_others_stay(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    two_tasks = a_task("shared").replace("[Task()]", "[Task(), type('Own', (), {'name': 'own'})()]")
    install("one", two_tasks)
    install("two", a_task("shared"))
    tasks = load_plugins().tasks
    assert tasks.get("own").name == "own"
    with pytest.raises(
        PluginError, match=r"task 'shared': dist-one 1\.0 \(plugin 'one'\) and dist-two 1\.0 \(plugin 'two'\)"
    ):
        tasks.get("shared")
    monkeypatch.setenv("VILA_PLUGINS", "two")
    assert load_plugins().tasks.owner("shared").distribution == "dist-two"


def test_core_keeps_its_names(install: Install) -> None:
    install(
        "greedy",
        a_projector("linear"),
    )
    plugins = load_plugins()
    assert "vila-core" in error_of(plugins, "greedy")
    assert "dist-greedy 1.0" in error_of(plugins, "greedy")
    assert plugins.projectors.owner("linear").distribution == "vila-core"
    assert plugins.projectors.get("linear").build is not print


@pytest.fixture
def no_plugin_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_loader, "_plugin_files", {})


@pytest.mark.usefixtures("no_plugin_files")
def test_plugin_file_registers(tmp_path: Path) -> None:
    file = tmp_path / "my_task.py"
    file.write_text(f"from vila_core import hookimpl\n{a_task('from_a_file')}")
    assert "from_a_file" in load_plugin_file(file).tasks
    assert load_plugins().tasks.owner("from_a_file").distribution == str(file)
    assert load_plugin_file(str(file)) is load_plugins(), "loading it again changes nothing"


@pytest.mark.usefixtures("no_plugin_files")
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("1/0", "ZeroDivisionError"),
        (f"from vila_core import hookimpl\n{a_task('linear').replace('vila_tasks', 'vila_projectors')}", "Component"),
    ],
    ids=["import", "register"],
)
def test_failing_plugin_file_raises_and_is_unregistered(source: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(source)
    before = set(sys.modules)
    with pytest.raises(PluginError, match=expected):
        load_plugin_file(file)
    assert str(file) not in {info.owner.distribution for info in load_plugins().infos}
    assert not {name for name in set(sys.modules) - before if name.startswith("vila_plugin_file_")}


def test_plugin_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="does not exist or is not a Python file"):
        load_plugin_file(tmp_path / "nothing.py")


HEAVY = ("torch", "triton", "transformers", "numpy", "PIL", "av")


@pytest.mark.parametrize(
    "statement",
    [
        "import vila_core",
        "from vila_core.plugins.loader import load_plugins; load_plugins()",
        "import vila_core.cli.main, vila_core.cli.infer",
    ],
)
def test_imports_nothing_heavy(statement: str) -> None:
    script = f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])"
    done = run_program([sys.executable, "-c", script], check=True)
    assert done.stdout.strip() == "[]"
