"""Trains vila-tiny-u from scratch: tokenizer, drawn data, stages, checkpoint and test."""

from functools import partial

import torch

import vila_core as vila
from vila_core.checkpoint import load_weights, open_checkpoint, save_checkpoint
from vila_core.model import VilaModel
from vila_train.tiny.evaluate import Score, score
from vila_train.tiny.loop import Log, Stage, run_stage
from vila_train.tiny.pools import Pool
from vila_train.tiny.recipes import SINGLE, StageConfig
from vila_train.tiny.rendering import Rendering, rendering
from vila_train.tiny.run_folder import RunFolder
from vila_train.tiny.training import TEST_SAMPLES, VALIDATION_SAMPLES, TinyOptions, compile_layers, in_order_of_use, run
from vila_train.tiny.vila_u.drawings import draw_samples, drawing_scores
from vila_train.tiny.vila_u.forward import encode_pool, hidden_states, language_loss, tower_loss, tower_quality
from vila_train.tiny.vila_u.model import (
    IMAGE_SIZE,
    MODEL,
    make_encoder,
    new_network,
    new_tower_training,
    save_tokenizer,
    tiny_u_config,
    tower_of,
)
from vila_train.tiny.vila_u.recipes import TINY_U_SAMPLES, TOWER_STAGE, draws_pictures, tiny_u_stages

TEST_DRAWINGS = 200
"""`vila-eval -t drawing/drawn-world` judges more."""
TOWER_TEST = "caption_things"
"""The validation pictures that show how well the tower reconstructs."""
NOT_STORED = (".embed_ema", ".cluster_size_ema")


def train_tiny_u(options: TinyOptions, recipe: tuple[StageConfig, ...] | None = None) -> dict[str, Score]:
    """Train, save `<out>/vila-tiny-u` in the `vila-u` format, and return the scores on the test split.

    Scores of questions are exact matches; those of drawings count colors, shapes, positions and numbers of things in
    the pixels. Arguments, resuming and errors are those of `vila_train.tiny.training.train_tiny`.
    """
    return run(MODEL, options, recipe or tiny_u_stages(), save_tokenizer, _train)


def _train(options: TinyOptions, stages: list[StageConfig], folder: RunFolder, log: Log) -> dict[str, Score]:
    with rendering(options.scratch, partial(make_encoder, folder.tokenizer), IMAGE_SIZE, options.workers) as drawn:
        validation = options.scaled(VALIDATION_SAMPLES, most=VALIDATION_SAMPLES)
        drawn.start("validation", dict.fromkeys((TOWER_TEST, *SINGLE), validation))
        unfinished = [stage for stage in stages if not folder.has(stage.name)]
        drawn.start("train", {source: options.scaled(TINY_U_SAMPLES[source]) for source in in_order_of_use(unfinished)})
        drawn.start("test", dict.fromkeys(SINGLE, options.scaled(TEST_SAMPLES, most=TEST_SAMPLES)))
        trains_tower = any(stage.name == TOWER_STAGE for stage in stages)
        network = new_network(folder.tokenizer, options.device, options.seed, trains_tower=trains_tower)
        if options.init is not None:
            load_weights(network, open_checkpoint(options.init), device=options.device, dtype=torch.float32)
        if options.compile:
            compile_layers(network)
        _Run(network, drawn, options, folder, log).stages(stages)
        folder.delete_checkpoint()
        weights = {name: value for name, value in network.state_dict().items() if not name.endswith(NOT_STORED)}
        config = tiny_u_config(network.config.language_model.vocab_size)
        save_checkpoint(weights, config, folder.tokenizer, folder.checkpoint, format="vila-u", dtype=torch.bfloat16)
        pools = {task: Pool(drawn.shards("test", task), options.device) for task in SINGLE}
        for pool in pools.values():
            encode_pool(network, pool)
        scores = score(network, pools, states=hidden_states)
    model = vila.load(folder.checkpoint, device=options.device)
    scores |= drawing_scores(draw_samples(model, options.scaled(TEST_DRAWINGS, most=TEST_DRAWINGS)))
    log({"test": {task: round(one.accuracy, 4) for task, one in scores.items()}})
    return scores


class _Run:
    """Runs the stages in order, each as soon as its samples are rendered; finished ones are restored."""

    def __init__(self, network: VilaModel, drawn: Rendering, options: TinyOptions, folder: RunFolder, log: Log):
        self.network = network
        self.drawn = drawn
        self.options = options
        self.folder = folder
        self.log = log
        self.pools: dict[str, Pool] = {}
        self.validation = {
            task: Pool(drawn.shards("validation", task), options.device) for task in (TOWER_TEST, *SINGLE)
        }

    def stages(self, configs: list[StageConfig]) -> None:
        """Run all stages. Once the tower is trained, pools hold codes."""
        for config in configs:
            if config.name == TOWER_STAGE:
                self._tower(config)
        tower_of(self.network).requires_grad_(False)
        for pool in (*self.pools.values(), *self.validation.values()):
            encode_pool(self.network, pool)
        for config in configs:
            if config.name != TOWER_STAGE:
                self._language(config)

    def _tower(self, config: StageConfig) -> None:
        training = new_tower_training(self.network)
        (draw,) = config.draws
        prepare = partial(training.draw_replacements, sum(draw.counts.values()))
        stage = partial(Stage, training, config, self.pools, self.options.seed, prepare=prepare)
        if self.folder.has(config.name):
            self.folder.restore(stage(loss=partial(tower_loss, training, self.network)))
            return
        self._load(config, as_codes=False)
        running = stage(loss=partial(tower_loss, training, self.network), capture=self.options.compile)
        self.log({"stage": config.name, "begins": config.model_dump()})
        run_stage(running, self.log, partial(tower_quality, training, self.network, self.validation[TOWER_TEST]))
        self.folder.save(running)

    def _language(self, config: StageConfig) -> None:
        loss = partial(language_loss, self.network, [draws_pictures(draw) for draw in config.draws])
        stage = partial(Stage, self.network, config, self.pools, self.options.seed, loss=loss)
        if self.folder.has(config.name):
            self.folder.restore(stage())
            return
        self._load(config, as_codes=True)
        running = stage(capture=self.options.compile)
        self.log({"stage": config.name, "begins": config.model_dump()})
        run_stage(running, self.log, self._validate)
        self.folder.save(running)

    def _validate(self) -> dict[str, float]:
        pools = {task: pool for task, pool in self.validation.items() if task in SINGLE}
        return {task: one.accuracy for task, one in score(self.network, pools, states=hidden_states).items()}

    def _load(self, config: StageConfig, *, as_codes: bool) -> None:
        """Wait for the samples of a stage."""
        for source in config.sources:
            if source not in self.pools:
                self.pools[source] = Pool(self.drawn.shards("train", source), self.options.device)
                if as_codes:
                    encode_pool(self.network, self.pools[source])
