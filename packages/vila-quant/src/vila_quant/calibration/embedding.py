"""Embed samples with vila_core's own prompt code, and pack them into sequences of equal length.

B sequences, T tokens, D width, S side of a tile in pixels

Several samples share a sequence, but each attends only to itself: positions restart with each sample, and the mask
keeps them apart. The last sample of a sequence is truncated, which changes nothing before the cut.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vila_core.chat import ChatTemplate, Message
from vila_core.checkpoint import Checkpoint, WeightIndex, load_weights
from vila_core.checkpoint.tensors.lora import Adapter
from vila_core.config import DecoderConfig
from vila_core.language.rope import Rotary
from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_core.prompt import PreparedPrompt, prepare
from vila_core.tokenizer import Tokenizer
from vila_quant.awq.block import BlockInputs
from vila_quant.calibration.drawings import prepare_drawing
from vila_quant.calibration.sample import Sample
from vila_quant.errors import QuantizationError

FEWEST_TOKENS = 2048
"""Below this, second moments say little about a layer thousands of channels wide."""
KEPT_TILES = 64
"""Number of tiles kept to calibrate the vision tower."""


@dataclass(frozen=True)
class Calibration:
    """The data that the blocks are calibrated on.

    Attributes:
        embeds: `[B, T, D]` in the dtype of the model.
        samples: index of the sample that each token belongs to, `[B, T]`.
        pixels: inputs of the vision tower, `[N, 3, S, S]` each.
        digest: SHA-256 of token ids and pixels, in order.
        count: number of samples.
    """

    embeds: Tensor
    samples: Tensor
    pixels: tuple[Tensor, ...]
    digest: str
    count: int

    def block_inputs(self, config: DecoderConfig, device: torch.device) -> BlockInputs:
        """Return the rotation and mask for `embeds`, on `device`."""
        samples = self.samples.to(device)
        length = samples.shape[1]
        place = torch.arange(length, device=device)
        starts = torch.ones_like(samples, dtype=torch.bool)
        starts[:, 1:] = samples[:, 1:] != samples[:, :-1]
        positions = place - torch.where(starts, place, 0).cummax(dim=1).values  # [B, T]
        rotary = Rotary(config)
        window = config.sliding_window
        if bool((positions == place).all()) and (window is None or window >= length):
            return BlockInputs(rotary(place[None], self.embeds.dtype))
        mask = (samples[:, :, None] == samples[:, None, :]) & (place[:, None] >= place)  # [B, T, T]
        if window is not None:
            mask &= place[:, None] - place < window
        return BlockInputs(rotary(positions, self.embeds.dtype), mask[:, None])


class Embedder:
    """The tower, projector and embedding of a model, without its blocks.

    Args:
        checkpoint: unquantized, in files.
        tokenizer: the checkpoint's tokenizer.
        template: chat template.
        device: device of the weights.
        dtype: dtype of the weights.
        overlay: an adapter to merge.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        device: torch.device,
        dtype: torch.dtype,
        overlay: Adapter | None,
    ):
        vocab_size = max(checkpoint.config.language_model.vocab_size, len(tokenizer))
        changes = {"vocab_size": vocab_size, "num_hidden_layers": 0, "tie_word_embeddings": True}
        self.config = checkpoint.config.model_copy(
            update={"language_model": checkpoint.config.language_model.model_copy(update=changes)}
        )
        self.tokenizer, self.template = tokenizer, template
        with torch.device("meta"):
            self.network = VilaModel(self.config, tokenizer)
        unused = ("llm.model.layers.", "llm.lm_head.")
        needed = {name: entry for name, entry in checkpoint.weights.entries.items() if not name.startswith(unused)}
        part = replace(checkpoint, weights=WeightIndex(needed))
        load_weights(self.network, part, device=device, dtype=dtype, vocab_size=vocab_size, adapter=overlay)
        self.network.eval().requires_grad_(False)
        self._hash = hashlib.sha256()
        self.pixels: list[Tensor] = []
        self.network.vision_tower.register_forward_pre_hook(self._keep_pixels)

    @property
    def digest(self) -> str:
        """SHA-256 of everything embedded so far."""
        return self._hash.hexdigest()

    @torch.no_grad()
    def embed(self, sample: Sample) -> Tensor:
        """Return the embeddings of one sample, `[T, D]`. Raises `PromptError` and `MediaError` as `prepare` does."""
        prepared = self._prepare(sample)
        self._hash.update(torch.tensor(prepared.input_ids).numpy().tobytes())
        for medium in prepared.media:
            self._hash.update(medium.tiles.pixels.numpy().tobytes())
        return self.network.embed(self.network.batch([prepared]))

    def _prepare(self, sample: Sample) -> PreparedPrompt:
        if sample.is_text:
            (text,) = sample.prompt
            assert isinstance(text, str), "running text"
            return PreparedPrompt(text, self.tokenizer.encode(text))
        if sample.drawing is not None:
            head = self.network.generation_head
            assert head is not None, "samples with drawings are for models that draw"
            return prepare_drawing(sample, head, self.config, self.tokenizer, self.template)
        messages = [Message("user", sample.prompt)]
        if sample.answer:
            messages.append(Message("assistant", sample.answer))
        asks = messages[-1].role == "user"
        return prepare(messages, self.config, self.tokenizer, self.template, MediaLimits(), generation_prompt=asks)

    def _keep_pixels(self, tower: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        left = KEPT_TILES - sum(map(len, self.pixels))
        if left > 0:
            self.pixels.append(arguments[0][:left].cpu())


def collect(
    samples: Iterable[Sample],
    embedder: Embedder,
    sequences: int,
    length: int,
    *,
    exact: bool,
    on_sequence: Callable[[int], None] | None = None,
) -> Calibration:
    """Embed samples until `sequences` of `length` tokens are full.

    Args:
        samples: read until there are enough.
        embedder: the model's.
        sequences: B.
        length: T.
        exact: whether fewer than B sequences are an error; otherwise `FEWEST_TOKENS` are enough.
        on_sequence: called with the number of full sequences.

    Raises:
        QuantizationError: too few samples.
    """
    packed = list(_pack(samples, embedder, sequences, length, on_sequence))
    full = [one for one in packed if len(one.embeds) == length]
    found = sum(len(one.embeds) for one in packed)
    needed = sequences * length if exact else min(FEWEST_TOKENS, sequences * length)
    if len(full) * length < needed:
        raise QuantizationError(
            f"Not enough calibration data: the samples have {found} tokens, but {needed} are needed. "
            "Use more samples, fewer --sequences, or the built-in samples (without --calibration)."
        )
    return Calibration(
        torch.stack([one.embeds for one in full]),
        torch.stack([one.samples for one in full]),
        tuple(embedder.pixels),
        embedder.digest,
        int(full[-1].samples[-1]) + 1,
    )


@dataclass(frozen=True)
class _Sequence:
    """Embeddings `[T, D]` and the sample index of each token `[T]`."""

    embeds: Tensor
    samples: Tensor


def _pack(
    samples: Iterable[Sample],
    embedder: Embedder,
    sequences: int,
    length: int,
    on_sequence: Callable[[int], None] | None,
) -> Iterator[_Sequence]:
    """Yield up to `sequences` sequences; the last may be shorter than `length`."""
    pieces: list[Tensor] = []
    numbers: list[Tensor] = []
    room, made = length, 0
    for number, sample in enumerate(samples):
        for piece in embedder.embed(sample).split(length):
            part = piece[:room]
            pieces.append(part)
            numbers.append(torch.full((len(part),), number))
            room -= len(part)
            if room:
                continue
            yield _Sequence(torch.cat(pieces), torch.cat(numbers))
            made += 1
            pieces, numbers, room = [], [], length
            if on_sequence is not None:
                on_sequence(made)
            if made == sequences:
                return
    if pieces:
        yield _Sequence(torch.cat(pieces), torch.cat(numbers))
