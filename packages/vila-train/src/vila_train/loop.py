"""The training loop: one stage from a configuration, pools of rendered samples, and a network.

Each step depends on the seed, the stage and the step's number alone, so a stage that is resumed from a state goes on
exactly as it would have.
"""

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from vila_core.model import VilaModel
from vila_train.forward import Batch, answer_loss
from vila_train.pools import Pool, draw
from vila_train.recipes import StageConfig

Record = dict[str, object]
Log = Callable[[Record], None]


def freeze(network: VilaModel, stage: StageConfig) -> list[nn.Parameter]:
    """Let gradients reach the parts that `stage` tunes and no others; return their parameters."""
    parts = (
        (network.vision_tower, stage.tune_vision_tower),
        (network.mm_projector, stage.tune_projector),
        (network.llm, stage.tune_language_model),
    )
    for part, tuned in parts:
        assert isinstance(part, nn.Module)
        part.requires_grad_(tuned)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def learning_rate(stage: StageConfig, step: int) -> float:
    """Return the rate of step number `step` (from 0): linear warm-up, then a cosine that reaches zero after the last."""
    warmup = round(stage.warmup_ratio * stage.steps)
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, stage.steps - warmup)
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(parameters: Sequence[nn.Parameter], stage: StageConfig) -> torch.optim.AdamW:
    """Return AdamW; matrices decay, biases and norms do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas, fused=parameters[0].is_cuda)


class Stage:
    """A stage under way: network, optimizer and the number of steps done."""

    def __init__(self, network: VilaModel, stage: StageConfig, pools: Mapping[str, Pool], seed: int):
        self.network = network
        self.config = stage
        self.pools = pools
        self.seed = seed
        self.step = 0
        self.parameters = freeze(network, stage)
        self.optimizer = make_optimizer(self.parameters, stage)
        self._generator = torch.Generator(self.parameters[0].device)

    def batches(self) -> list[Batch]:
        """Return what the next step learns from, one batch a draw."""
        self._generator.manual_seed(zlib.crc32(f"{self.seed}/{self.config.name}/{self.step}".encode()))
        return [draw(self.pools, part.counts, self._generator) for part in self.config.draws]

    def advance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one step; return the loss and the gradient's norm before clipping, both on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        with autocast(self.parameters[0].device):
            loss = answer_loss(self.network, self.batches())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach(), norm

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        torch.save({"step": self.step, "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}, path)

    def resume(self, path: Path) -> None:
        """Go on from a state of the same stage."""
        state = torch.load(path, map_location=self.parameters[0].device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """bf16 matrix products on a GPU; plain fp32 on a CPU, where bf16 is no faster."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def run_stage(stage: Stage, log: Log, evaluate: Callable[[], Mapping[str, float]] | None = None) -> None:
    """Train until the stage's last step, logging as its configuration says.

    Args:
        stage: where to begin; one that was resumed goes on from its step.
        log: gets a record every `log_every` steps, and the accuracies of `evaluate` every `evaluate_every` steps.
        evaluate: accuracy by task.
    """
    config, started, first = stage.config, time.monotonic(), stage.step
    while stage.step < config.steps:
        loss, norm = stage.advance()
        if stage.step % config.log_every == 0 or stage.step == config.steps:
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
            log({"stage": config.name, "step": stage.step, "validation": {task: round(value, 4) for task, value in evaluate().items()}})
