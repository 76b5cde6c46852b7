"""`train`: runs one stage from its configuration to the exported model."""

import math
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import torch

from vila_train.callbacks import Callback, RunStart, StepRecord
from vila_train.checkpoint_state import Progress
from vila_train.compute.flops import ModelFlops
from vila_train.compute.peak import peak_flops
from vila_train.config import TrainConfig
from vila_train.errors import TrainingError
from vila_train.loop.exporting import export, export_model, has_rounded_weights
from vila_train.loop.loader import LaneRounds, LoadedRow, RowLoader, own_lanes
from vila_train.loop.optimizer import make_optimizer, rate_factor, set_learning_rates
from vila_train.loop.preparation import check_run, prepare_run, require_machine
from vila_train.loop.reporting import Reporter, StepCounts, add_counts
from vila_train.loop.setup import build_trainee, needs_group
from vila_train.loop.step import train_step
from vila_train.loop.stopping import StopRequest, explain_memory, fail_step, stop_request
from vila_train.packing import PackedRow
from vila_train.packing.lanes import LaneConfig, Order, SampleEncoder
from vila_train.parallel.world import World, join_world
from vila_train.run_folder import RunFolder, open_run


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and has saved a checkpoint. Programs exit with code 130."""


def train(
    config: TrainConfig,
    out: Path,
    callbacks: Sequence[Callback] = (),
    *,
    order: Order | None = None,
    device: str = "auto",
    accept_changes: bool = False,
) -> Path:
    """Run a stage, or resume it, and return the folder of the exported model.

    Under `torchrun` or `accelerate launch`, every process calls this.

    Args:
        config: the stage.
        out: folder of the run; the same call resumes it.
        callbacks: receive what happens, on rank 0, besides those of `config.logging`.
        order: the samples; None: those of `config.data.mixture`.
        device: "auto" is the GPU of this process if there is one.
        accept_changes: resume a run that was started with another configuration.

    Raises:
        ConfigError: `out` holds another run, or the number of ranks does not fit.
        TrainingError: training cannot continue; the message says why.
        OutputError: a file cannot be written.
        Stopped: after Ctrl-C or SIGTERM.
    """
    with join_world(device, group=needs_group(config)) as world, _own_random_numbers(world), ExitStack() as held:
        own: list[Callback] = []
        world.first(lambda: own.extend(check_run(config, RunFolder(out), world, accept_changes=accept_changes)))
        folder = world.first(lambda: held.enter_context(open_run(out, config, accept_changes=accept_changes)))
        if folder.is_complete:
            return folder.model
        require_machine(config, world.device)
        with stop_request() as request:
            run = Run(config, folder, world, [*own, *callbacks], order, accept_changes=accept_changes)
            try:
                run.advance(request)
                run.export()
            except BaseException as error:
                run.end("stopped" if isinstance(error, KeyboardInterrupt) else str(error))
                raise
            run.end("finished")
        return folder.model


class Run:
    """A run in progress: the model, the optimizer, the data, and how far they are.

    Args:
        config: the stage.
        folder: of the run.
        world: this rank.
        callbacks: receive what happens, on rank 0.
        order: the samples; None: those of the mixture.
        accept_changes: the data may differ from those that the run started with.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        world: World,
        callbacks: Sequence[Callback],
        order: Order | None = None,
        *,
        accept_changes: bool = False,
    ):
        self._config, self._folder, self._world = config, folder, world
        self._reporter = Reporter(callbacks if world.is_first else ())
        prepared = prepare_run(config, folder, world, order, accept_changes=accept_changes)
        self._opened, self._evaluator, self._plan = prepared.opened, prepared.evaluator, prepared.plan
        self._base = prepared.base
        self._checkpoints, self._row_length = prepared.checkpoints, prepared.row_length
        self._trainee = build_trainee(self._opened, config, world)
        self._flops = ModelFlops.of(self._opened.network)
        self._optimizer = make_optimizer(self._opened.network, config.optimizer, world.device)
        progress = self._resume(prepared.found)
        world.first(lambda: folder.begin(config, self._plan, progress.step))  # nothing can be refused any more
        self.step, self._saved = progress.step, progress.step
        self._lanes, self._skipped = dict(progress.lanes), Counter(progress.skipped)
        self._truncated = progress.truncated
        self._loader = self._load(prepared.order, prepared.encode)

    def _resume(self, found: tuple[Path, Progress] | None) -> Progress:
        """Return where the run stands, with model and optimizer as they were in the checkpoint `found`."""
        progress = Progress(step=0, lanes={}, skipped={})
        if found is not None:
            path, progress = found
            self._checkpoints.load(path, self._opened.network, self._optimizer)
        return progress

    def _load(self, order: Order, encode: SampleEncoder) -> RowLoader:
        data, plan, world = self._config.data, self._plan, self._world
        lanes = own_lanes(world, plan.lanes)
        config = LaneConfig(plan.lanes, self._row_length, data.lookahead, data.packing)
        first = self.step * plan.rows_per_step % plan.lanes
        rounds = LaneRounds(order, encode, config, lanes, self._lanes, first)
        return RowLoader(rounds, world, plan.rows_per_step, data.workers, len(lanes))

    def advance(self, request: StopRequest) -> None:
        """Train until the last step, or until `request`, and save a checkpoint then.

        Raises:
            Stopped: it was requested.
            TrainingError, OutputError: as `train` does.
        """
        network, every = self._opened.network, self._config.saving.every
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        everything = sum(p.numel() for p in network.parameters())
        total = self._plan.total_steps
        self._reporter.start(
            RunStart(self._config, self._folder.path, self.step, total, self._world.size, trained, everything)
        )
        self._evaluate_if_due(request)  # unless the run was stopped after that
        while self.step < total:
            if self._advance(request):
                self._stop()
            # Before an evaluation, which may take hours in which the run may be killed.
            if self.step == total or (every is not None and self.step % every == 0):
                self.save()
            self._evaluate_if_due(request)

    def _stop(self) -> NoReturn:
        self.save()
        raise Stopped

    def _advance(self, request: StopRequest) -> bool:
        """Do one step. Return whether the run is to stop before it."""
        started = time.perf_counter()
        loaded, rows, own = self._next_rows(request)
        counts = add_counts(self._world.gather(own))
        if counts.stop:
            return True
        if counts.problem is not None:
            raise TrainingError(counts.problem)
        factor = rate_factor(self._config.optimizer, self.step, self._plan.total_steps)
        rates = set_learning_rates(self._optimizer, factor)
        with explain_memory(self._config, loaded, self._world):
            result = train_step(
                self._trainee,
                rows,
                self._optimizer,
                clip_norm=self._config.optimizer.clip_norm,
                seed=f"{self._config.seed}/{self.step}",
                numbers=range(self._world.rank, self._plan.rows_per_step, self._world.size),
                counts=counts.targets,
                keep_gathered=self._config.compute.keep_gathered,
            )
            values = torch.stack([*result.losses, result.loss, result.gradient_norm]).tolist()  # waits for the GPU
        text, codes, loss, norm = values
        if not (math.isfinite(loss) and math.isfinite(norm)):
            fail_step(self.step + 1, result, loaded, self._folder, self._world)
        self._complete(loaded, counts)
        losses = {} if self._opened.network.generation is None else {"text": text, "codes": codes}
        self._report(counts, loss, losses, norm, rates, time.perf_counter() - started)
        return False

    def _next_rows(self, request: StopRequest) -> tuple[list[LoadedRow], list[PackedRow], StepCounts]:
        """Return the next rows of this rank, in main memory and on the device, and their counts."""
        if request.requested:
            return [], [], StepCounts(stop=True)
        try:
            loaded = self._loader.next_step()
        except TrainingError as error:
            return [], [], StepCounts(problem=str(error))
        rows = [one.row.to(self._world.device) for one in loaded]
        flops, seconds = sum(map(self._flops.of_row, rows)), self._loader.seconds
        return loaded, rows, StepCounts.of(loaded, self._row_length, flops, seconds, stop=request.requested)

    def _complete(self, loaded: Sequence[LoadedRow], counts: StepCounts) -> None:
        """Note that a step is done."""
        self.step += 1
        self._lanes.update((one.lane, one.state) for one in loaded)
        self._truncated += counts.truncated
        self._skipped.update(one.reason for one in counts.skipped)
        if counts.skipped:
            self._world.first(lambda: self._folder.add_skipped(self.step, counts.skipped))

    def _report(
        self,
        counts: StepCounts,
        loss: float,
        losses: Mapping[str, float],
        norm: float,
        rates: Mapping[str, float],
        seconds: float,
    ) -> None:
        if self.step % self._config.logging.every and self.step != self._plan.total_steps:
            return
        device = self._world.device
        peak = peak_flops(device)
        record = StepRecord(
            step=self.step,
            loss=loss,
            gradient_norm=norm,
            learning_rates=rates,
            tokens=counts.tokens,
            labelled_tokens=counts.targets.tokens,
            padding=1 - counts.tokens / counts.room,
            samples=counts.samples,
            skipped=dict(self._skipped),
            seconds=seconds,
            data_seconds=counts.seconds,
            model_flops=counts.flops,
            mfu=None if peak is None else counts.flops / seconds / (peak * self._world.size),
            memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            losses=losses,
            drawn_positions=counts.targets.positions,
            truncated=self._truncated,
        )
        self._reporter.step(record)

    def _evaluate_if_due(self, request: StopRequest) -> None:
        """Evaluate after some steps, once each. A run that was asked to stop does it when it resumes."""
        if not self.step or not self._evaluator.is_due(self.step, self._plan.total_steps):
            return
        if self._world.first(lambda: self._folder.was_evaluated(self.step)):
            return
        if any(self._world.gather(request.requested)):
            self._stop()
        self._evaluate()

    def _evaluate(self) -> None:
        world = self._world
        scores = self._evaluator.scores(self._opened, self._trainee, world.device, here=world.is_first)
        world.share(None)  # the others wait here, and not in the next step's exchange of gradients
        self._reporter.evaluation(self.step, scores)

    def save(self) -> None:
        """Save a checkpoint, unless that of this step is there. Raises `OutputError`."""
        if self._saved == self.step:
            return
        lanes = {number: state for of_rank in self._world.gather(self._lanes) for number, state in of_rank.items()}
        progress = Progress(
            step=self.step,
            lanes=lanes,
            skipped=self._skipped,
            truncated=self._truncated,
            plan=self._plan,
            base=self._base,
        )
        self._world.first(lambda: self._folder.keep(self._config, self._plan))
        path = self._checkpoints.save(self._opened.network, self._optimizer, progress)
        self._saved = self.step
        self._reporter.checkpoint(self.step, path)

    def export(self) -> None:
        """Write the trained model."""
        if has_rounded_weights(self._opened.network, self._config):
            self._world.first(lambda: export(self._folder.path, self._folder.model))
        else:
            export_model(self._opened, self._folder.model, self._world, adapter=self._config.adapter)

    def end(self, reason: str) -> None:
        """Stop loading, and report why the run ended."""
        self._loader.close()
        self._reporter.end(self.step, reason)


@contextmanager
def _own_random_numbers(world: World) -> Generator[None]:
    """Restore the random generators at the end."""
    with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
        yield
