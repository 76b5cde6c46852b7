"""Trains vila-tiny from scratch: tokenizer, drawn data, stages, checkpoint and test."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch._dynamo import config as dynamo

import vila_train
from vila_core.checkpoint import load_weights, open_checkpoint, save_checkpoint
from vila_core.device_choice import choose_device
from vila_core.errors import ConfigError
from vila_core.language.decoder import Decoder
from vila_core.model import VilaModel
from vila_core.new_file import cannot_write, open_log
from vila_core.projectors import Projector
from vila_core.projectors import reset_parameters as reset_projector
from vila_core.strict_json import to_strict_json
from vila_core.tokenizer import Tokenizer
from vila_core.towers.siglip import SiglipTower
from vila_train.run_lock import only_run
from vila_train.tiny.evaluate import Score, score
from vila_train.tiny.loop import Log, Record, Stage, run_stage
from vila_train.tiny.model import IMAGE_SIZE, make_encoder, save_tokenizer, tiny_config
from vila_train.tiny.pools import Pool
from vila_train.tiny.recipes import TINY_SAMPLES, StageConfig, tiny_stages
from vila_train.tiny.rendering import Rendering, rendering
from vila_train.tiny.run_folder import LOG, RunFolder
from vila_train.tiny.world import TESTS

MODEL = "vila-tiny"
VALIDATION_SAMPLES = 256
TEST_SAMPLES = 1000


@dataclass(frozen=True)
class TinyOptions:
    """Options for training vila-tiny.

    Attributes:
        out: folder for the log, the saved states and the checkpoint.
        scratch: folder for rendered samples (45 GB at scale 1), which are deleted as they are loaded.
        seed: random seed of the weights and batches.
        scale: factor on the numbers of steps and samples; use less than 1 for a trial run.
        device: "cuda", "cuda:1", "cpu", or "auto" for a GPU if there is one.
        compile: compile the layers of tower and language model, and replay each step as a CUDA graph.
        workers: rendering processes; None: one per CPU core, minus one.
        init: checkpoint to start from; None: random weights.
    """

    out: Path
    scratch: Path
    seed: int = 0
    scale: float = 1.0
    device: str = "cuda"
    compile: bool = True
    workers: int | None = None
    init: Path | None = None

    def scaled(self, size: int, most: int | None = None) -> int:
        """Return `size` times `scale`, at least 16 and at most `most`."""
        size = max(16, round(size * self.scale))
        return size if most is None else min(size, most)


def train_tiny(options: TinyOptions, recipe: tuple[StageConfig, ...] | None = None) -> dict[str, Score]:
    """Train, save `<out>/vila-tiny` in the `vila` format, and return the scores on the test split.

    The same call resumes an interrupted run after its last finished stage. A complete run only returns its scores.

    Args:
        options: where and how to train.
        recipe: stages to run instead of the default ones.

    Raises:
        ConfigError: the device is not on this machine, or `out` holds something else.
        OutputError: a file cannot be written.
        TrainingError: the loss is not finite, or a saved state is damaged.
    """
    return run(MODEL, options, recipe or tiny_stages(), save_tokenizer, _train)


Train = Callable[[TinyOptions, list[StageConfig], RunFolder, Log], dict[str, Score]]


def run(
    model: str,
    options: TinyOptions,
    recipe: tuple[StageConfig, ...],
    save_tokenizer: Callable[[Path], None],
    train: Train,
) -> dict[str, Score]:
    """Train a model of the drawn world in its run folder, with a log, and return its scores; see `train_tiny`.

    Args:
        model: its name, also that of the checkpoint's folder.
        options: where and how to train.
        recipe: the stages at scale 1.
        save_tokenizer: writes the tokenizer to a folder.
        train: runs the stages, writes the checkpoint and returns the scores.
    """
    require_init(model, options, recipe)
    options, stages = resolved(options, recipe)
    folder = RunFolder(options.out, settings(options, stages), model)
    if (finished := folder.scores) is not None:
        return finished
    started = time.monotonic()
    with only_run(folder.path), open_log(options.out / LOG) as file:
        save_tokenizer(folder.tokenizer)

        def log(record: Record) -> None:
            file.write(to_strict_json({**record, "elapsed": round(time.monotonic() - started, 1)}) + "\n")
            print(to_strict_json(record), flush=True)

        try:
            scores = train(options, stages, folder, log)
        except OSError as error:  # of the log, or of samples in the scratch folder
            raise cannot_write(options.out, error) from error
    folder.save_scores(scores)
    return scores


def require_init(model: str, options: TinyOptions, stages: Sequence[StageConfig]) -> None:
    """Raise `ConfigError` or `CheckpointError` if the stages of a model cannot start from `options.init`."""
    if options.init is None:
        return
    if model != MODEL and any(stage.tune_vision_tower for stage in stages):
        raise ConfigError(
            f"The tower of {model} is trained from random weights: its codebooks' averages are not stored. "
            "Leave out init, or choose later stages."
        )
    open_checkpoint(options.init)


def resolved(options: TinyOptions, recipe: Sequence[StageConfig]) -> tuple[TinyOptions, list[StageConfig]]:
    """Return the options with their device, and the stages at their scale.

    Raises `ConfigError` if the device is not on this machine.
    """
    stages = [scaled(stage, options.scale) for stage in recipe]
    return replace(options, device=str(choose_device(options.device))), stages


def settings(options: TinyOptions, stages: list[StageConfig]) -> dict[str, object]:
    """Return everything that the result of a run depends on, as JSON values."""
    return {
        "version": vila_train.__version__,
        "seed": options.seed,
        "scale": options.scale,
        "device": options.device,
        "init": None if options.init is None else str(options.init),
        "stages": [stage.model_dump(mode="json") for stage in stages],
    }


def _train(options: TinyOptions, stages: list[StageConfig], folder: RunFolder, log: Log) -> dict[str, Score]:
    encoder = partial(make_encoder, folder.tokenizer)
    with rendering(options.scratch, encoder, IMAGE_SIZE, options.workers) as drawn:
        drawn.start("validation", dict.fromkeys(TESTS, options.scaled(VALIDATION_SAMPLES, most=VALIDATION_SAMPLES)))
        drawn.start("test", dict.fromkeys(TESTS, options.scaled(TEST_SAMPLES, most=TEST_SAMPLES)))
        unfinished = [stage for stage in stages if not folder.has(stage.name)]
        drawn.start("train", {source: options.scaled(TINY_SAMPLES[source]) for source in in_order_of_use(unfinished)})
        network = new_network(folder.tokenizer, options.device, options.seed)
        if options.init is not None:
            load_weights(network, open_checkpoint(options.init), device=options.device, dtype=torch.float32)
        if options.compile:
            compile_layers(network)
        run_stages(network, stages, drawn, options, folder, log)
        folder.delete_checkpoint()
        save_checkpoint(network.state_dict(), network.config, folder.tokenizer, folder.checkpoint, dtype=torch.bfloat16)
        scores = score(network, {task: Pool(drawn.shards("test", task), options.device) for task in TESTS})
    log({"test": {task: round(one.accuracy, 4) for task, one in scores.items()}})
    return scores


def scaled(stage: StageConfig, scale: float) -> StageConfig:
    """Return `stage` with `scale` times the steps."""
    return stage.model_copy(update={"steps": max(1, round(stage.steps * scale))})


def in_order_of_use(stages: list[StageConfig]) -> list[str]:
    """Return all sources of the stages, in the order in which they are first used."""
    return list(dict.fromkeys(source for stage in stages for source in stage.sources))


def new_network(tokenizer_folder: Path, device: torch.device | str, seed: int) -> VilaModel:
    """Return vila-tiny with random weights that depend only on `seed`, not on the device."""
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    torch.manual_seed(seed)
    network = VilaModel(tiny_config(len(tokenizer)), tokenizer)
    tower, projector, llm = network.vision_tower, network.mm_projector, network.llm
    assert isinstance(tower, SiglipTower)
    assert isinstance(projector, Projector)
    assert isinstance(llm, Decoder)
    tower.reset_parameters()
    reset_projector(projector)
    with torch.no_grad():
        llm.reset_parameters()
    return network.to(device)


def compile_layers(network: VilaModel) -> None:
    """Compile layer by layer. Equal layers share the compiled code, which takes seconds instead of minutes."""
    dynamo.recompile_limit = 64  # one version per layout and set of frozen parts
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.compile(dynamic=False)


def run_stages(
    network: VilaModel, stages: list[StageConfig], drawn: Rendering, options: TinyOptions, folder: RunFolder, log: Log
) -> None:
    """Run the stages in order, each as soon as its samples are rendered. Finished ones are restored from `folder`."""
    validation = {task: Pool(drawn.shards("validation", task), options.device) for task in TESTS}
    pools: dict[str, Pool] = {}
    for config in stages:
        if folder.has(config.name):
            folder.restore(Stage(network, config, pools, options.seed))
            continue
        for source in config.sources:
            if source not in pools:
                pools[source] = Pool(drawn.shards("train", source), options.device)
        stage = Stage(network, config, pools, options.seed, capture=options.compile)
        log({"stage": config.name, "begins": config.model_dump()})

        def evaluate() -> dict[str, float]:
            return {task: one.accuracy for task, one in score(network, validation).items()}

        run_stage(stage, log, evaluate)
        folder.save(stage)
