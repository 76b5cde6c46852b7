"""Recipes have the values of the reference's scripts, and any of them survives YAML."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.programs import run_program

from vila_core.errors import ConfigError
from vila_core.plugins.loader import load_plugins
from vila_core.testing import check_plugin
from vila_train import plugin
from vila_train.config import TrainConfig
from vila_train.data.names import parse_mixture
from vila_train.data.public_sets import public_sets
from vila_train.recipes import RECIPES
from vila_train.recipes.tiny import TinyConfig
from vila_train.settings import build_recipe, change, read_config, write_config

P, PV, PL, PLG, ALL = (
    {"projector"},
    {"projector", "vision_tower"},
    {"projector", "language_model"},
    {"projector", "language_model", "generation_head"},
    {"projector", "vision_tower", "language_model"},
)

# NVlabs/VILA: --tune_*, --learning_rate, DEFAULT_GLOBAL_TRAIN_BATCH_SIZE, --model_max_length and --max_grad_norm of
# scripts/NVILA-Lite/*.sh, scripts/NVILA/*.sh and scripts/v1_5 (which give no norm: 1.0, the default of its trainer).
TINY = ("vila-tiny", "vila-tiny-u")
TABLE = {
    "nvila-lite-align": (P, 1e-3, 2048, 4096, 1.0),
    "nvila-lite-stage1.5": (PV, 5e-5, 1024, 4096, 1.0),
    "nvila-lite-pretrain": (PL, 5e-5, 1024, 4096, 1.0),
    "nvila-lite-sft": (ALL, 2e-5, 2048, 4096, 1.0),
    "nvila-align": (P, 1e-3, 512, 8192, 1.0),
    "nvila-stage1.5": (PV, 2e-5, 1024, 8192, 5.0),
    "nvila-pretrain": (PL, 2e-5, 1024, 8192, 1.0),
    "nvila-sft": (ALL, 1.5e-5, 1024, 8192, 5.0),
    "nvila-video": (ALL, 2e-5, 2048, 16384, 1.0),
    "vila1.5-align": (P, 1e-3, 2048, 4096, 1.0),
    "vila1.5-pretrain": (PL, 5e-5, 1024, 4096, 1.0),
    "vila1.5-sft": (ALL, 1e-4, 512, 4096, 1.0),
    "vila1.5-sft-40b": (ALL, 2e-5, 512, 4096, 1.0),
    "vila-u-pretrain": (PLG, 5e-5, 4096, 8192, 1.0),
    "vila-u-sft": (PLG, 1e-4, 4096, 8192, 1.0),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_has_the_values_of_the_reference(name: str):
    config = build_recipe(name)
    assert isinstance(config, TrainConfig)
    tuned, rate, samples, length, clip = TABLE[name]
    assert config.name == name
    assert set(config.tune) == tuned
    assert config.optimizer.learning_rate == rate
    assert config.data.samples_per_step == samples
    assert config.data.max_length == length
    assert config.optimizer.clip_norm == clip
    assert (config.optimizer.schedule, config.optimizer.warmup_ratio) == ("cosine", 0.03)
    assert (config.optimizer.weight_decay, config.epochs) == (0, 1)
    assert (config.compute.precision, config.compute.activation_checkpointing) == ("bf16", "full")
    assert (config.model.new is not None) == name.endswith("-align")


def test_every_recipe_is_in_the_table():
    assert {recipe.name for recipe in RECIPES} == {*TABLE, *TINY}
    assert all(len(recipe.summary) < 80 for recipe in RECIPES)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.name not in TINY], ids=lambda r: r.name)
def test_the_mixtures_of_recipes_are_public_sets(recipe):
    names = [item.name for item in parse_mixture(recipe.build().data.mixture)]
    assert set(names) <= set(public_sets())


def test_the_first_stages_name_parts_and_how_they_see():
    lite, full = build_recipe("nvila-lite-align").model, build_recipe("nvila-align").model
    assert (lite.new.projector, lite.image_aspect_ratio, lite.max_tiles) == ("mlp_downsample_3x3_fix", "dynamic", 12)
    assert (full.new.projector, full.s2_scales) == ("mlp_downsample", (448, 896, 1344))
    video = build_recipe("nvila-video")
    assert (video.model.projector, video.model.num_video_frames) == ("mlp_downsample_2x2_fix", 256)
    assert (video.model.temporal_pool, video.model.num_time_tokens, video.soft_time_tokens) == (8, 100, 1.0)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_survives_yaml(recipe, tmp_path: Path):
    config = recipe.build()
    path = tmp_path / "recipe.yaml"
    path.write_text(write_config(config), encoding="utf-8")
    assert read_config(path) == config


def test_plugins_register_recipes():
    assert set(TABLE) <= set(load_plugins().recipes.names())
    assert check_plugin(plugin)["vila_recipes"] == tuple(recipe.name for recipe in RECIPES)


def test_listing_recipes_imports_nothing_heavy():
    code = (
        "import sys, vila_train.plugin as p; p.vila_recipes();"
        "print([m for m in ('torch', 'pydantic', 'yaml') if m in sys.modules])"
    )
    done = run_program([sys.executable, "-c", code], check=True)
    assert done.stdout.strip() == "[]"


PLUGIN = """
from vila_core import hookimpl
from vila_train.recipes import Recipe
def build():
    from vila_train.settings import build_recipe
    return {result}
@hookimpl
def vila_recipes():
    return [{item}]
"""
OWN = "Recipe('{name}', 'a recipe of a plugin', build)"


def run_with_plugin(tmp_path: Path, item: str, result: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "own.py"
    file.write_text(PLUGIN.format(item=item, result=result))
    command = [sys.executable, "-m", "vila_train", *arguments, "--plugin", str(file)]
    return run_program(command)


def test_a_plugin_adds_a_recipe(tmp_path: Path):
    result = "build_recipe('nvila-sft').model_copy(update={'name': 'mine'})"
    done = run_with_plugin(tmp_path, OWN.format(name="mine"), result, "show", "mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("name: mine\n")
    listed = run_with_plugin(tmp_path, OWN.format(name="mine"), result, "list", "--json")
    assert {"name": "mine", "summary": "a recipe of a plugin"} in json.loads(listed.stdout)


@pytest.mark.parametrize(
    ("item", "result", "message"),
    [
        (OWN.format(name="mine"), "{'learning_rate': 1}", "expected a vila_train.config.TrainConfig"),
        ("'nvila-sft'", "0", "expected a recipe (an object with name, summary and build)"),
        ("Recipe('mine', 7, build)", "0", "needs a summary"),
        ("Recipe", "0", "expected a recipe"),
        (OWN.format(name=""), "0", "needs a name"),
        (OWN.format(name="vila-tiny"), "0", "Two plugins register the recipe 'vila-tiny'"),
    ],
)
def test_a_wrong_recipe_of_a_plugin_is_named(tmp_path: Path, item: str, result: str, message: str):
    done = run_with_plugin(tmp_path, item, result, "show", "mine")
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_an_unknown_recipe_is_named():
    with pytest.raises(ConfigError, match=r"Unknown recipe 'nvila-stf'.*Did you mean 'nvila-sft'"):
        build_recipe("nvila-stf")


def test_vila_tiny_u_has_the_same_settings():
    config = change(build_recipe("vila-tiny-u"), ["scale=0.5", "stages=tower"])
    assert config == TinyConfig(name="vila-tiny-u", scale=0.5, stages=("tower",))


def test_vila_tiny_has_settings_of_its_own():
    assert change(build_recipe("vila-tiny"), ["scale=0.5", "stages=align,sft"]) == TinyConfig(
        scale=0.5, stages=("align", "sft")
    )


def test_help_imports_nothing_heavy():
    code = "import sys, vila_train.cli; print([m for m in ('torch', 'pydantic', 'yaml') if m in sys.modules])"
    done = run_program([sys.executable, "-c", code], check=True)
    assert done.stdout.strip() == "[]"
