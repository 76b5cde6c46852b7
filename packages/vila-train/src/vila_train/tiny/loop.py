"""The training loop of vila-tiny: runs one stage on a network and pools of rendered samples.

A step depends only on the seed, the stage and the step number, so a resumed stage gives the same results as an
uninterrupted one.

Schedule, optimizer and freezing are not those of `vila_train.loop`, so that trials of any scale and saved states stay
reproducible: the warm-up is rounded, not rounded up; all weights share one rate, a tensor that the captured CUDA graph
reads, in groups that saved optimizer states refer to; frozen parts stay in training mode.
"""

import math
import pickle
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vila_core.input_files import Content, check_input
from vila_core.model import VilaModel
from vila_core.new_file import new_file
from vila_train.errors import TrainingError
from vila_train.tiny.forward import Batch, answer_loss
from vila_train.tiny.pools import Pool, join
from vila_train.tiny.recipes import StageConfig

Record = dict[str, object]
Log = Callable[[Record], None]
Loss = Callable[[Sequence[Batch]], torch.Tensor]
"""The loss of the batches of a step, one for each draw."""

STEPS_BEFORE_CAPTURE = 3
"""Warm-up steps: compiling, tuning and allocating must be over before a CUDA graph is captured."""


def freeze(network: VilaModel, stage: StageConfig) -> None:
    """Freeze tower, projector and language model except what `stage` tunes. A generation head is always trained."""
    parts = (
        (network.vision_tower, stage.tune_vision_tower),
        (network.mm_projector, stage.tune_projector),
        (network.llm, stage.tune_language_model),
    )
    for part, tuned in parts:
        assert isinstance(part, nn.Module)
        part.requires_grad_(tuned)


def learning_rate(stage: StageConfig, step: int) -> float:
    """Return the learning rate of step `step` (from 0): linear warm-up, then a cosine that ends at zero."""
    warmup = round(stage.warmup_ratio * stage.steps)
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, stage.steps - warmup)
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(parameters: Sequence[nn.Parameter], stage: StageConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only. The learning rate is a tensor for CUDA graphs to read."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    device = parameters[0].device
    rate = torch.tensor(stage.learning_rate, device=device)
    return torch.optim.AdamW(
        groups, lr=rate, betas=stage.betas, fused=device.type == "cuda", capturable=device.type == "cuda"
    )


class Stage:
    """A running stage: network, optimizer and the number of steps done.

    Args:
        network: the model, on the device to train on. With a `loss`, what requires a gradient is trained.
        stage: which parts to tune, the schedule and the data.
        pools: samples by source.
        seed: random seed of the batches.
        loss: what is minimized; None: the loss of the answers, of the parts that `stage` tunes.
        prepare: called before each step with its seeded generator, outside of a captured graph.
        capture: on a GPU, capture a step as a CUDA graph and replay it. A step of a small network takes less time than
            Python needs to launch its kernels one by one.
    """

    def __init__(
        self,
        network: nn.Module,
        stage: StageConfig,
        pools: Mapping[str, Pool],
        seed: int,
        *,
        loss: Loss | None = None,
        prepare: Callable[[torch.Generator], None] | None = None,
        capture: bool = False,
    ):
        if loss is None:
            assert isinstance(network, VilaModel)
            freeze(network, stage)
            loss = partial(answer_loss, network)
        self.network = network
        self._loss = loss
        self._prepare = prepare
        self.config = stage
        self.pools = pools
        self.seed = seed
        self.step = 0
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(self.parameters, stage)
        device = self.parameters[0].device
        self._capture = capture and device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outcome: tuple[torch.Tensor, torch.Tensor] | None = None
        self._generator = torch.Generator(device)
        self._chosen = [
            {source: torch.zeros(count, dtype=torch.int64, device=device) for source, count in draw.counts.items()}
            for draw in stage.draws
        ]

    def advance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one step. Return the loss and the gradient norm before clipping, which the next step may overwrite."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate(self.config, self.step))
        self._choose()
        self.step += 1
        if not self._capture or self.step <= STEPS_BEFORE_CAPTURE:
            self.optimizer.zero_grad(set_to_none=True)
            return self._work()
        if self._graph is None:
            self.optimizer.zero_grad(set_to_none=True)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outcome = self._work()
        assert self._outcome is not None
        self._graph.replay()
        return self._outcome

    def _choose(self) -> None:
        """Draw what is random in the next step, in place."""
        self._generator.manual_seed(zlib.crc32(f"{self.seed}/{self.config.name}/{self.step}".encode()))
        for counts in self._chosen:
            for source, indices in counts.items():
                torch.randint(len(self.pools[source]), indices.shape, generator=self._generator, out=indices)
        if self._prepare is not None:
            self._prepare(self._generator)

    def batches(self) -> list[Batch]:
        """Return the chosen samples, one batch per draw."""
        return [
            join([self.pools[source].take(indices) for source, indices in counts.items()]) for counts in self._chosen
        ]

    def _work(self) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(self.parameters[0].device):
            loss = self._loss(self.batches())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        return loss.detach(), norm

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on to `path`. Raises `OutputError`."""
        state = {"step": self.step, "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with new_file(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def resume(self, path: Path) -> None:
        """Continue from a saved state of the same stage. Raises `TrainingError` if it is damaged."""
        check_input(
            path,
            max_bytes=1 << 40,
            error=TrainingError,
            advice="Delete it to run the stage again.",
            content=Content.ARCHIVE,
        )
        try:
            state = torch.load(path, map_location=self.parameters[0].device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise TrainingError(
                f"{path} is not a saved state of this stage. Delete it to run the stage again."
            ) from error


def autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """Return the autocast context: bf16 on a GPU, fp32 on a CPU, where bf16 is not faster."""
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if device.type == "cuda" else nullcontext()


def run_stage(stage: Stage, log: Log, evaluate: Callable[[], Mapping[str, float]] | None = None) -> None:
    """Train until the last step of the stage.

    Args:
        stage: the stage to run; a resumed one continues from its current step.
        log: receives a record every `log_every` steps, and the results of `evaluate` every `evaluate_every` steps.
        evaluate: returns the accuracy by task.

    Raises:
        TrainingError: the loss is not finite.
    """
    config, started, first = stage.config, time.monotonic(), stage.step
    while stage.step < config.steps:
        loss, norm = stage.advance()
        if stage.step % config.log_every == 0 or stage.step == config.steps:
            if not math.isfinite(loss.item()):
                raise TrainingError(
                    f"The loss is {loss.item()} at step {stage.step} of stage '{config.name}'. "
                    "Lower its learning_rate or clip_norm."
                )
            seconds = time.monotonic() - started
            log(
                {
                    "stage": config.name,
                    "step": stage.step,
                    "loss": round(loss.item(), 5),
                    "gradient_norm": round(norm.item(), 4),
                    "learning_rate": learning_rate(config, stage.step - 1),
                    "seconds": round(seconds, 2),
                    "steps_per_second": round((stage.step - first) / seconds, 2),
                }
            )
        if evaluate and (stage.step % config.evaluate_every == 0 or stage.step == config.steps):
            log(
                {
                    "stage": config.name,
                    "step": stage.step,
                    "validation": {task: round(value, 4) for task, value in evaluate().items()},
                }
            )
