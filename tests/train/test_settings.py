"""Settings from YAML and from KEY=VALUE, and the errors of wrong ones."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vila_core.errors import ConfigError
from vila_train.config import AdapterConfig, DataConfig, TrainConfig
from vila_train.recipes.tiny import TinyConfig
from vila_train.settings import build_recipe, change, read_config, setting_names, write_config
from vila_train.stages import start_from, trained_model


@pytest.fixture
def config() -> TrainConfig:
    found = build_recipe("nvila-lite-sft")
    assert isinstance(found, TrainConfig)
    return found


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("data.max_length=8192", "data.max_length", 8192),
        ("data.max_length = 8192", "data.max_length", 8192),
        ("optimizer.learning_rate=1e-5", "optimizer.learning_rate", 1e-5),
        ("optimizer.learning_rate=.00001", "optimizer.learning_rate", 1e-5),
        ("data.packing=false", "data.packing", False),
        ("data.packing=no", "data.packing", False),
        ("tune=projector", "tune", ("projector",)),
        ("tune=projector,language_model", "tune", ("projector", "language_model")),
        ("tune=projector, language_model", "tune", ("projector", "language_model")),
        ("tune=[projector, language_model]", "tune", ("projector", "language_model")),
        ("model.s2_scales=448,896", "model.s2_scales", (448, 896)),
        ("model.s2_scales=448", "model.s2_scales", (448,)),
        ("model.s2_scales=[]", "model.s2_scales", ()),
        ("model.s2_scales=null", "model.s2_scales", None),
        ("optimizer.betas=0.9,0.95", "optimizer.betas", (0.9, 0.95)),
        ("data.mixture=a+b*3@x", "data.mixture", "a+b*3@x"),
        ("data.mixture=*a", "data.mixture", "*a"),
        ("data.mixture=a=b", "data.mixture", "a=b"),
        ("data.mixture=12", "data.mixture", "12"),
        ("name=true", "name", "true"),
        ("name=2024-01-01", "name", "2024-01-01"),
        ("data.registries=a.yaml,b.yaml", "data.registries", (Path("a.yaml"), Path("b.yaml"))),
        ("max_steps=100", "max_steps", 100),
        ("max_steps=none", "max_steps", None),
        ("compute.activation_checkpointing=none", "compute.activation_checkpointing", "none"),
        ("adapter.rank=8", "adapter", AdapterConfig(rank=8)),
        ("adapter={method: dora, rank: 4}", "adapter", AdapterConfig(method="dora", rank=4)),
        ("optimizer.part_learning_rates.vision_tower=2e-6", "optimizer.part_learning_rates", {"vision_tower": 2e-6}),
        ("model.new.language_model=a/b", None, None),
    ],
)
def test_a_setting_changes(config: TrainConfig, assignment: str, key: str | None, value: object):
    if key is None:
        with pytest.raises(ConfigError, match=r"model\.new\.vision_tower is missing"):
            change(config, [assignment])
        return
    changed: object = change(config, [assignment])
    for name in key.split("."):
        changed = getattr(changed, name)
    assert changed == value


def test_later_assignments_win_and_others_stay(config: TrainConfig):
    changed = change(config, ["data.max_length=1", "data.max_length=2", "adapter.rank=8", "adapter.alpha=8"])
    assert changed.data.max_length == 2
    assert changed.adapter == AdapterConfig(rank=8, alpha=8)
    assert change(changed, ["data.max_length=4096", "adapter=null"]) == config


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.max_lenght=1", "Unknown setting 'data.max_lenght'. Did you mean 'data.max_length'?"),
        ("max_length=1", "Did you mean 'model.max_length' or 'data.max_length'?"),
        ("learning_rate=1", "Did you mean 'optimizer.learning_rate'?"),
        ("lr=1", "Unknown setting 'lr'."),
        ("data.max_length.x=1", "Unknown setting 'data.max_length.x'"),
        ("data..max_length=1", "Unknown setting"),
        (".=1", "Unknown setting"),
        ("__class__=1", "Unknown setting"),
        ("model_config=1", "Unknown setting"),
        ("data.max_length", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("", "expected KEY=VALUE"),
        ("data.max_length=many", "data.max_length must be a whole number, got 'many'"),
        ("data.max_length=", "data.max_length must be a whole number"),
        ("data.max_length=0", "must be more than 0"),
        ("data.max_length=-1", "must be more than 0"),
        ("data.max_length=1.5", "must be a whole number"),
        ("data.max_length=[1]", "must be a whole number"),
        ("data.max_length=null", "data.max_length must be a whole number"),
        ("data={}", "data.mixture is missing"),
        ("data=3", "data is a group of settings, got 3"),
        ("data.workers=true", "data.workers must be a number, got True"),
        ("data.workers=257", "data.workers must be 256 or less"),
        ("data.lookahead=9999999999", "data.lookahead must be 4096 or less"),
        ("data.lanes=9999999999", "data.lanes must be 1048576 or less"),
        ("data.rows_per_step=9999999999", "data.rows_per_step must be 1048576 or less"),
        ("data.samples_per_step=9999999999", "data.samples_per_step must be 1048576 or less"),
        ("adapter.rank=9999999999", "adapter.rank must be 65536 or less"),
        ("optimizer.learning_rate=1e300", "optimizer.learning_rate must be 1e+15 or less"),
        ("optimizer.part_learning_rates.projector=1e300", "projector must be 1e+15 or less"),
        ("epochs=1e308", "epochs must be 1e+15 or less"),
        ("optimizer.learning_rate=inf", "must be a finite number"),
        ("optimizer.learning_rate=0", "must be more than 0"),
        ("optimizer.learning_rate=fast", "must be a number"),
        ("optimizer.betas=0.9", "optimizer.betas"),
        ("optimizer.warmup_ratio=1.5", "must be less than 1"),
        ("optimizer.schedule=cosin", "must be 'cosine', 'linear' or 'constant'"),
        ("tune=projectr", "must be 'vision_tower', 'projector', 'language_model' or 'generation_head'"),
        ("optimizer.part_learning_rates.head=1", "optimizer.part_learning_rates.head"),
        ("compute.precision=fp16", "must be 'bf16' or 'fp32'"),
        ("compute.ring=2", "must be 1"),
        ("adapter.method=lorra", "must be 'lora', 'dora', 'qlora' or 'norms'"),
        ("data.packing=maybe", "must be true or false"),
        ("tune=[projector", "is not valid YAML"),
        ("tune=&a [x]", "tune"),
        ("tune=!!python/object:os.system []", "is not valid YAML"),
    ],
)
def test_a_wrong_setting_is_explained(config: TrainConfig, assignment: str, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        change(config, [assignment])
    assert str(caught.value).startswith(f"--set {assignment}")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_changes_a_recipe(tmp_path: Path):
    text = """
recipe: nvila-lite-sft
data: {mixture: mine, max_length: 2048}
adapter: {rank: 8}
optimizer:
  betas: [0.9, 0.95]
"""
    config = read_config(write(tmp_path / "my.yaml", text))
    base = build_recipe("nvila-lite-sft")
    assert isinstance(config, TrainConfig)
    assert config.data == base.data.model_copy(update={"mixture": "mine", "max_length": 2048})
    assert config.optimizer.learning_rate == base.optimizer.learning_rate
    assert config.optimizer.betas == (0.9, 0.95)
    assert config.adapter == AdapterConfig(rank=8)


def test_a_file_without_a_recipe_is_complete(tmp_path: Path):
    text = "name: mine\ntune: [projector]\ndata: {mixture: a}\noptimizer: {learning_rate: 1e-4}\n"
    config = read_config(write(tmp_path / "my.yaml", text))
    assert isinstance(config, TrainConfig)
    assert config.optimizer.learning_rate == 1e-4
    assert read_config(write(tmp_path / "again.yaml", write_config(config))) == config


def test_a_file_may_change_vila_tiny(tmp_path: Path):
    assert read_config(write(tmp_path / "t.yaml", "recipe: vila-tiny\nscale: 0.5\n")) == TinyConfig(scale=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: nvila-stf", "Did you mean 'nvila-sft'"),
        ("recipe: [nvila-sft]", "expected the name of a recipe"),
        ("recipe: nvila-sft\ndata: {max_lenght: 1}", "Did you mean 'data.max_length'"),
        ("recipe: nvila-sft\noptimiser: {}", "Did you mean 'optimizer'"),
        ("recipe: nvila-sft\ndata: 3", "data is a group of settings, got 3"),
        ("recipe: nvila-sft\ndata: null", "data must be a JSON object"),
        ("recipe: nvila-sft\ndata: {max_length: long}", "data.max_length must be a whole number, got 'long'"),
        ("recipe: nvila-sft\nadapter: lora", "adapter is a group of settings, got 'lora'. Set one of: adapter.method"),
        ("recipe: nvila-sft\nmax_steps: yes", "max_steps must be a number, got True"),
        ("recipe: nvila-sft\nsaving: {every: off}", "saving.every must be a number, got False"),
        ("recipe: nvila-sft\nepochs: .inf", "epochs must be a finite number"),
        ("recipe: nvila-sft\nepochs: .nan", "epochs must be a finite number"),
        ("recipe: nvila-sft\nseed: 9223372036854775808", "seed must be less than 9223372036854775808"),
        ("recipe: nvila-sft\nname: ''", "name must have 1 or more characters"),
        ("recipe: vila-tiny\nscale: yes", "scale must be a number, got True"),
        ("recipe: nvila-sft\nseed: 1\nseed: 2", "stands twice"),
        ("recipe: nvila-sft\ntune: &a [projector]\nname: *a", "alias"),
        ("recipe: vila-tiny\ndata: {}", "Unknown setting 'data'"),
        ("", "name is missing"),
        ("name: x", "tune is missing"),
        ("- a", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("1: 2", "not a text"),
        ("name: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, message: str):
    path = write(tmp_path / "my.yaml", text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(path)


def test_a_missing_file_is_explained(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_config(tmp_path / "none.yaml")


def test_every_setting_has_a_name():
    names = setting_names(TrainConfig)
    assert {"data.max_length", "optimizer.betas", "adapter.rank", "model.new.projector", "seed"} <= set(names)
    assert len(names) == len(set(names))


def align_settings() -> str:
    align = build_recipe("nvila-align")
    return yaml.safe_dump(align.model_dump(mode="json"))


def complete_run(folder: Path) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "run.yaml").write_text(align_settings())
    (folder / "model" / "config.json").write_text("{}")
    return folder


def test_a_stage_starts_from_the_model_of_a_run(config: TrainConfig, tmp_path: Path):
    run = complete_run(tmp_path / "align")
    assert start_from(config, run=run).model.path == str(run / "model")
    align = build_recipe("nvila-align")
    assert isinstance(align, TrainConfig)
    assert start_from(align, run=run).model.new is None


def test_a_stage_starts_from_a_named_model(config: TrainConfig):
    assert start_from(config, model="owner/name").model.path == "owner/name"
    align = build_recipe("nvila-align")
    assert isinstance(align, TrainConfig)
    started = start_from(align, model="owner/llm").model
    assert started.path is None
    assert started.new is not None
    assert started.new.language_model == "owner/llm"
    assert start_from(align) == align


def test_a_stage_needs_a_model(config: TrainConfig, tmp_path: Path):
    with pytest.raises(ConfigError, match="--model MODEL, or --stage-from RUN"):
        start_from(config)
    with pytest.raises(ConfigError, match="Give one"):
        start_from(config, model="a", run=complete_run(tmp_path / "run"))


def test_vila_tiny_is_a_run_too(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"stages": []}')
    with pytest.raises(ConfigError, match="not complete"):
        trained_model(tmp_path)
    (tmp_path / "scores.json").write_text("{}")
    assert trained_model(tmp_path) == tmp_path / "vila-tiny"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["run.yaml"], "not complete.*vila-train export"),
        (["run.yaml", "model/llm/config.json"], "not complete"),
        (["run.yaml", "checkpoints/step-1/x"], "not complete"),
        (["config.json"], "is a model, not the folder of a run. Use --model"),
        (["other.txt"], "it has no run.yaml"),
        ([], "it has no run.yaml"),
    ],
)
def test_a_run_that_is_not_complete_is_refused(tmp_path: Path, files: list[str], message: str):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(align_settings() if name == "run.yaml" else "")
    with pytest.raises(ConfigError, match=message):
        trained_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.yaml", "", "does not hold the settings of a run: name is missing"),
        ("run.yaml", "- a\n- b\n", r"run.yaml' holds \['a', 'b'\]; expected a mapping"),
        ("run.yaml", "7", "run.yaml' holds 7; expected a mapping"),
        ("run.yaml", "{{{", "run.yaml' is not valid YAML"),
        ("run.yaml", "\0\0\0", "run.yaml' is not valid YAML"),
        ("run.yaml", "name: vila-tiny\nscale: 1.0\n", "does not hold the settings of a run: tune is missing"),
        ("run.yaml", align_settings().partition("\ntune:")[0], "does not hold the settings of a run: tune is missing"),
        ("run.yaml", align_settings() + "extra: 1\n", "does not hold the settings of a run: extra is not a known key"),
        ("run.json", "", "run.json is not valid JSON: it is empty"),
        ("run.json", "[]", "run.json holds a JSON list"),
        ("run.json", "{}", "run.json' does not hold the settings of a run: it has no stages"),
        ("run.json", '{"stages": [', "run.json is not valid JSON"),
    ],
)
def test_a_run_with_damaged_settings_is_refused(tmp_path: Path, name: str, content: str, message: str):
    run = complete_run(tmp_path / "run")
    (run / "run.yaml").unlink()
    (run / "scores.json").write_text("{}")
    (run / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"^--stage-from: .*{message}.* use --model .*/run/(model|vila-tiny)$"):
        trained_model(run)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_run_that_is_no_folder_is_refused(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="there is no folder"):
        trained_model(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(mixture="a", max_length=0), "DataConfig: max_length must be more than 0, got 0"),
        (lambda: AdapterConfig(rank=-1), "AdapterConfig: rank must be more than 0, got -1"),
        (
            lambda: TrainConfig(
                name="a", tune=(), data={"mixture": "a", "workers": -1}, optimizer={"learning_rate": 1}
            ),  # pyright: ignore[reportArgumentType]
            "TrainConfig: data.workers must be 0 or more, got -1",
        ),
    ],
)
def test_settings_written_in_python_are_explained(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_iterator_without_an_end_is_no_list():
    with pytest.raises(ConfigError, match=r"targets: expected a list, got count\(0\)"):
        AdapterConfig(targets=itertools.count())  # pyright: ignore[reportArgumentType]
