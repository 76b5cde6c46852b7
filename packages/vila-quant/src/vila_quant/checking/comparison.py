"""Record the outputs of the original, and compare those of the quantized model with them, prompt by prompt.

T tokens, P positions of a picture, D width, V vocabulary, K codebook size
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vila_core.language.decoder import Decoder
from vila_core.runtime import Vila
from vila_quant.checking.held_out import HeldOutPrompt, PromptKind


@dataclass(frozen=True)
class Record:
    """Outputs of the original for a prompt, in host memory.

    Attributes:
        logits: logits of the scored tokens `[scored, V]`, or of the codes of a drawing `[scored · codes, K]`.
        features: outputs of the vision tower, one tensor per call.
        blocks: input `[T, D]` of each block, then the output of the last; empty if not kept.
    """

    logits: Tensor
    features: list[Tensor] = field(default_factory=list[Tensor])
    blocks: list[Tensor] = field(default_factory=list[Tensor])


@torch.inference_mode()
def record(model: Vila, prompt: HeldOutPrompt, *, keeps_blocks: bool) -> Record:
    """Run the original on a prompt and record its outputs."""
    features: list[Tensor] = []
    flow: list[Tensor] = []
    blocks = blocks_of(model) if keeps_blocks else []

    def keep_block(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        flow.append(arguments[0][0].cpu())
        if module is blocks[-1]:
            flow.append(output[0].cpu())

    with (
        _hooked([model.network.vision_tower], lambda module, arguments, output: features.append(output.cpu())),
        _hooked(blocks, keep_block),
    ):
        logits = _scored_logits(model, prompt)
    return Record(logits.cpu(), features, flow)


def _scored_logits(model: Vila, prompt: HeldOutPrompt) -> Tensor:
    """Return the logits that predict the scored tokens or codes, `[scored, V]` or `[scored · codes, K]`."""
    embeds = model.network.embed(model.network.batch([prompt.prepared]))
    hidden = model.network.llm(embeds[None])[0][-prompt.scored - 1 : -1]  # [scored, D]
    if prompt.codes is None:
        return model.network.llm.logits(hidden)
    head = model.network.generation_head
    assert head is not None, "the original draws, and the quantized model was made from it"
    return head.logits(hidden, prompt.codes.to(hidden.device)).flatten(0, 1)


@dataclass
class Errors:
    """Sums of squares of differences and of expected values."""

    error: float = 0.0
    power: float = 0.0

    def add(self, difference: Tensor, expected: Tensor) -> None:
        """Add tensors of the same shape."""
        self.error += float(difference.float().square().sum())
        self.power += float(expected.float().square().sum())

    @property
    def relative(self) -> float:
        """Root mean square error relative to that of the expected values."""
        return math.sqrt(self.error / self.power) if self.power else 0.0


@dataclass(frozen=True)
class Compared:
    """Sums over the scored tokens or codes of a prompt."""

    kind: PromptKind
    tokens: int
    kl: float
    agreements: int
    loss_before: float
    loss_after: float


@torch.inference_mode()
def compare(model: Vila, prompt: HeldOutPrompt, record: Record, vision: Errors, layers: Sequence[Errors]) -> Compared:
    """Run the quantized model on a prompt, adding the errors of its tower and blocks to `vision` and `layers`."""
    expected = iter(record.features)

    def compare_features(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        features = next(expected).to(output.device)
        vision.add(output - features, features)

    with _hooked([model.network.vision_tower], compare_features):
        logits = _scored_logits(model, prompt)
    if record.blocks:
        _compare_blocks(model, record.blocks, layers)
    before, after = (
        torch.log_softmax(of_model.to(logits.device).float(), dim=-1) for of_model in (record.logits, logits)
    )
    targets = prompt.targets.to(logits.device)[:, None]
    return Compared(
        kind=prompt.kind,
        tokens=len(targets),
        kl=float((before.exp() * (before - after)).sum()),
        agreements=int((before.argmax(-1) == after.argmax(-1)).sum()),
        loss_before=-float(before.gather(1, targets).sum()),
        loss_after=-float(after.gather(1, targets).sum()),
    )


def _compare_blocks(model: Vila, flow: Sequence[Tensor], layers: Sequence[Errors]) -> None:
    """Run the language model again, each block with the input of the original's block."""
    blocks = blocks_of(model)
    places = {block: place for place, block in enumerate(blocks)}

    def give(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[object, ...]:
        return (flow[places[module]][None].to(arguments[0]), *arguments[1:])

    def compare(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        place = places[module]
        expected, given = flow[place + 1].to(output), flow[place].to(output)
        layers[place].add(output[0] - expected, expected - given)

    handles = [block.register_forward_pre_hook(give) for block in blocks]
    try:
        with _hooked(blocks, compare):
            model.network.llm(flow[0][None].to(model.device))
    finally:
        for handle in handles:
            handle.remove()


def blocks_of(model: Vila) -> list[nn.Module]:
    """Return the blocks of the native decoder; an empty list for other language models."""
    llm = model.network.llm
    return list(llm.model.layers) if isinstance(llm, Decoder) else []


@contextmanager
def _hooked(
    modules: Sequence[nn.Module], hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]
) -> Generator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
