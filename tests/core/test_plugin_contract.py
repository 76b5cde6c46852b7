"""`vila_core.testing.check_plugin`: plugins that pass, and the faults that it reports."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vila_core.config import PROJECTOR_NAMES, ProjectorConfig
from vila_core.errors import PluginError
from vila_core.plugins import builtins
from vila_core.plugins.loader import load_plugins
from vila_core.testing import check_plugin

GOOD = Path(__file__).parents[1] / "plugins" / "vila-plugin-good" / "src"
COLLIDING = Path(__file__).parents[1] / "plugins" / "vila-plugin-colliding" / "src"

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a plugin module and return its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written: list[str] = []

    def write(source: str) -> str:
        name = f"contract_plugin_{len(written)}"
        (tmp_path / f"{name}.py").write_text(
            "from vila_core import Command, Component, hookimpl\n"
            "from vila_core.config import Config, ProjectorConfig, VisionTowerConfig\n" + source
        )
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_builtin_plugin_passes() -> None:
    provides = check_plugin(builtins)
    assert "siglip" in provides["vila_vision_towers"]


def test_good_plugin_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GOOD))
    provides = check_plugin("vila_plugin_good.plugin")
    assert provides == {"vila_vision_towers": ("patch_mean",), "vila_chat_templates": ("plain_dialog",)}


def test_good_plugins_tower_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GOOD))
    from vila_plugin_good.plugin import PatchMeanConfig, build_tower

    tower = build_tower(PatchMeanConfig(image_size=28, patch_size=14, hidden_size=5))
    assert tower(torch.zeros(2, 3, 28, 28)).shape == (2, 4, 5)


def test_name_taken_by_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(COLLIDING))
    with pytest.raises(PluginError, match="vision tower 'siglip'"):
        check_plugin("vila_plugin_colliding.with_core")


TOWER = "@hookimpl\ndef vila_vision_towers():\n    return [Component('t', {config}, {build})]\n"
FAULTS = {
    "heavy_import": ("import torch\n@hookimpl\ndef vila_tasks():\n    return []\n", "importing it imports torch"),
    "heavy_hook": (
        "@hookimpl\ndef vila_commands():\n    import torch\n    return [Command('c', 'Help.', lambda: print)]\n",
        "calling its hooks imports torch",
    ),
    "heavy_data": ("import datasets\n@hookimpl\ndef vila_tasks():\n    return []\n", "importing it imports datasets"),
    "nothing": ("", "registers nothing"),
    "hook_raises": ("@hookimpl\ndef vila_tasks():\n    raise KeyError('x')\n", "KeyError"),
    "no_sequence": ("@hookimpl\ndef vila_tasks():\n    return {}\n", "must return a sequence"),
    "unstable": (
        "import itertools\ncount = itertools.count()\n@hookimpl\n"
        "def vila_commands():\n    return [Command(f'c{next(count)}', 'Help.', lambda: print)]\n",
        "other names the second time",
    ),
    "mutable_config": (
        "class Mutable(VisionTowerConfig, frozen=False):\n    pass\n"
        + TOWER.format(config="Mutable", build="lambda config: None"),
        "must be frozen",
    ),
    "other_name": (
        "class Other(VisionTowerConfig):\n    name: str = 'other'\n"
        + TOWER.format(config="Other", build="lambda config: None"),
        "'other' by default",
    ),
    "build_without_config": (
        TOWER.format(config="VisionTowerConfig", build="lambda: None"),
        "one argument, the config",
    ),
    "no_help": ("@hookimpl\ndef vila_commands():\n    return [Command('c', ' ', lambda: print)]\n", "help is empty"),
    "template_raises": (
        "class T:\n    name = 't'\n    def render(self, turns, special_tokens):\n        return turns[9].text\n"
        "@hookimpl\ndef vila_chat_templates():\n    return [T()]\n",
        "render raises IndexError",
    ),
    "template_forgets": (
        "class T:\n    name = 't'\n    def render(self, turns, special_tokens):\n        return turns[-1].text\n"
        "@hookimpl\ndef vila_chat_templates():\n    return [T()]\n",
        "omits the text of a turn",
    ),
    "format_says_yes": (
        "class F:\n    name = 'f'\n    def detect(self, path):\n        return True\n"
        "    def read(self, path): ...\n    def write(self, checkpoint, path, *, max_shard_bytes=None): ...\n"
        "@hookimpl\ndef vila_checkpoint_formats():\n    return [F()]\n",
        "detect returns True",
    ),
    "format_without_shard_limit": (
        "class F:\n    name = 'f'\n    def detect(self, path):\n        return False\n"
        "    def read(self, path): ...\n    def write(self, checkpoint, path): ...\n"
        "@hookimpl\ndef vila_checkpoint_formats():\n    return [F()]\n",
        "write must take checkpoint, path and the keyword max_shard_bytes",
    ),
    "format_raises": (
        "class F:\n    name = 'f'\n"
        "    def detect(self, path):\n        return bool((path / 'config.json').read_text())\n"
        "    def read(self, path): ...\n    def write(self, checkpoint, path, *, max_shard_bytes=None): ...\n"
        "@hookimpl\ndef vila_checkpoint_formats():\n    return [F()]\n",
        "detect must not raise; got FileNotFoundError",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported(fault: str, write: Write) -> None:
    source, expected = FAULTS[fault]
    with pytest.raises(PluginError) as caught:
        check_plugin(write(source))
    assert expected in str(caught.value)


def test_all_faults_are_reported_together(write: Write) -> None:
    sources = [FAULTS[name][0] for name in ("heavy_import", "no_help", "build_without_config")]
    with pytest.raises(PluginError) as caught:
        check_plugin(write("\n".join(sources)))
    assert str(caught.value).count(" - ") == 3


@pytest.mark.parametrize("name", PROJECTOR_NAMES)
def test_every_registered_projector_can_be_built(name: str) -> None:
    config = ProjectorConfig(name=name, in_size=12, out_size=12)
    projector = load_plugins().projectors.get(name).build(config)
    assert projector(torch.zeros(2, 25, 12)).shape[::2] == (2, 12)
