"""A decoder each of whose blocks lies on several devices at once: every device has some of the heads, and a part of the
MLP's inner width (Shoeybi et al. 2019, Megatron-LM, section 3).

B batch, T new tokens, D width, W devices

Linears that read hidden states are divided by their outputs, linears that write them by their inputs. What a device
computes is then a part of a sum over all devices, which attention and MLP each take once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from vila_core.config import DecoderConfig
from vila_core.errors import ConfigError
from vila_core.language.attention import AttentionFunction, AttentionInputs, attention_inputs
from vila_core.language.cache import Cache, SlotCache
from vila_core.language.decoder import Block, Decoder, RMSNorm
from vila_core.language.divided import DividedDecoder, Part, current
from vila_core.language.rope import Rotary

BY_OUTPUTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
BY_INPUTS = ("self_attn.o_proj", "mlp.down_proj")


@runtime_checkable
class DivisibleLinear(Protocol):
    """A linear with weights of its own kind that can be divided among devices."""

    def divided(self, devices: Sequence[torch.device], *, by_outputs: bool) -> list[nn.Module]:
        """Return linears with an equal share each of the outputs or of the inputs, on `devices`.

        Only the first of those with a share of the inputs has the bias.

        Raises:
            ConfigError: the weights cannot be divided into so many.
        """
        ...


def part_config(config: DecoderConfig, count: int) -> DecoderConfig:
    """Return the config of a decoder with one of `count` equal shares of the heads and of the MLP.

    Raises:
        ConfigError: they cannot be divided into so many.
    """
    divided = {
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
    }
    if any(size % count for size in divided.values()):
        raise ConfigError(
            f"{count} devices cannot share {config.num_attention_heads} query heads, {config.num_key_value_heads} "
            f"key/value heads and an MLP of {config.intermediate_size} equally; {_listed(possible_counts(config))}. "
            "Name as many devices, or split the model by layers: device_map='auto'."
        )
    return config.model_copy(update={name: size // count for name, size in divided.items()})


def possible_counts(config: DecoderConfig) -> list[int]:
    """Return how many devices can share the heads and the MLP, more than one."""
    sizes = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    return [count for count in range(2, config.num_key_value_heads + 1) if not any(size % count for size in sizes)]


def _listed(counts: Sequence[int]) -> str:
    if not counts:
        return "no number of devices can"
    *others, last = map(str, counts)
    return f"{', '.join(others)} or {last} can" if others else f"{last} can"


class TensorParallelDecoder(DividedDecoder):
    """A decoder whose devices work on every token together.

    Args:
        decoder: a loaded decoder. Its blocks are taken apart, one after the other, and it loses them.
        devices: each gets an equal share of every block. The first holds the rest.

    Raises:
        ConfigError: the devices cannot share the blocks equally.
    """

    def __init__(self, decoder: Decoder, devices: Sequence[torch.device]):
        config = part_config(decoder.config, len(devices))
        dtype = decoder.model.embed_tokens.weight.dtype
        super().__init__(decoder, tuple(Part(config, device, dtype) for device in devices))
        blocks, decoder.model.layers = list(decoder.model.layers), nn.ModuleList()
        shards = [Shard(part, decoder.model.attention) for part in self.parts]
        for number in range(len(blocks)):
            block = cast("Block", blocks[number])
            blocks[number] = nn.Identity()  # frees its memory for the next shares
            for shard, share in zip(shards, divide_block(block, config, devices), strict=True):
                shard.blocks.append(share)
        self.shards = nn.ModuleList(shards)

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Embeddings `[B, T, D]` -> hidden states after the final norm `[B, T, D]`."""
        shards = [cast("Shard", shard) for shard in self.shards]
        passes = [
            shard.begin(embeds.shape[1], positions, part, lengths, embeds.dtype)
            for shard, part in zip(shards, self.caches(cache), strict=True)
        ]
        xs = [embeds.to(part.device) for part in self.parts]
        for number in range(self.config.num_hidden_layers):
            xs = add_all(xs, [shard.attend(number, x, one) for shard, x, one in zip(shards, xs, passes, strict=True)])
            xs = add_all(xs, [shard.feed(number, x) for shard, x in zip(shards, xs, strict=True)])
        return self.decoder.model.norm(xs[0])


def add_all(xs: Sequence[Tensor], changes: Sequence[Tensor]) -> list[Tensor]:
    """Add every device's change to every device's hidden states; all `[B, T, D]`."""
    return [x + sum((change.to(x.device) for change in changes[1:]), start=changes[0].to(x.device)) for x in xs]


@dataclass(frozen=True)
class Pass:
    """What the blocks of one device need in one forward pass."""

    rotation: tuple[Tensor, Tensor]
    inputs: AttentionInputs


class Shard(nn.Module):
    """One device's share of all blocks.

    Args:
        part: what it is.
        attention: of the decoder.
    """

    def __init__(self, part: Part, attention: AttentionFunction):
        super().__init__()
        self.part = part
        self.blocks = nn.ModuleList()
        self.rotary = Rotary(part.config)  # its frequencies stay on this device
        self._attention = attention

    def begin(
        self,
        num_tokens: int,
        positions: Tensor | None,
        cache: SlotCache | None,
        lengths: Tensor | None,
        dtype: torch.dtype,
    ) -> Pass:
        """Return what all blocks need for `num_tokens` new tokens of each row."""
        device = self.part.device
        positions = None if positions is None else positions.to(device)
        inputs = attention_inputs(num_tokens, positions, cache, self.part.config.sliding_window, device)
        assert inputs.positions is not None
        return Pass(self.rotary(inputs.positions, dtype, None if lengths is None else lengths.to(device)), inputs)

    def attend(self, number: int, x: Tensor, one: Pass) -> Tensor:
        """Return this device's part of what attention adds to `x`, `[B, T, D]`."""
        block = cast("Block", self.blocks[number])
        with current(self.part.device):
            return block.self_attn(block.input_layernorm(x), one.rotation, one.inputs, self._attention)

    def feed(self, number: int, x: Tensor) -> Tensor:
        """Return this device's part of what the MLP adds to `x`, `[B, T, D]`."""
        block = cast("Block", self.blocks[number])
        with current(self.part.device):
            return block.mlp(block.post_attention_layernorm(x))


def divide_block(block: Block, config: DecoderConfig, devices: Sequence[torch.device]) -> list[Block]:
    """Return the shares of `block`; `config` is that of a share."""
    with torch.device("meta"):
        shares = [Block(config, block.self_attn.layer).eval().requires_grad_(False) for _ in devices]
    for names, by_outputs in ((BY_OUTPUTS, True), (BY_INPUTS, False)):
        for name in names:
            linears = divide_linear(block.get_submodule(name), devices, by_outputs=by_outputs)
            for share, linear in zip(shares, linears, strict=True):
                share.set_submodule(name, linear)
    for name, module in block.named_modules():
        if isinstance(module, RMSNorm):
            for share, device in zip(shares, devices, strict=True):
                share.get_submodule(name).register_parameter("weight", _parameter(module.weight.to(device)))
    return shares


def divide_linear(linear: nn.Module, devices: Sequence[torch.device], *, by_outputs: bool) -> list[nn.Module]:
    """Return the shares of a linear, see `DivisibleLinear`. Raises `ConfigError` if it cannot be divided."""
    if isinstance(linear, DivisibleLinear):
        return linear.divided(devices, by_outputs=by_outputs)
    if type(linear) is not nn.Linear:
        raise ConfigError(
            f"Weights of the kind {type(linear).__name__} cannot be divided among devices. Split the model by layers: "
            "device_map='auto'."
        )
    weights = linear.weight.chunk(len(devices), dim=0 if by_outputs else 1)
    biases = _divide_bias(linear.bias, len(devices), by_outputs=by_outputs)
    made: list[nn.Module] = []
    for weight, of_weight, device in zip(weights, biases, devices, strict=True):
        share = nn.Linear(weight.shape[1], weight.shape[0], bias=of_weight is not None, device="meta")
        share.weight = _parameter(weight.to(device, copy=True).contiguous())
        if of_weight is not None:
            share.bias = _parameter(of_weight.to(device, copy=True))
        made.append(share)
    return made


def _divide_bias(bias: Tensor | None, count: int, *, by_outputs: bool) -> Sequence[Tensor | None]:
    if bias is None:
        return [None] * count
    return bias.chunk(count) if by_outputs else [bias, *[None] * (count - 1)]  # the parts are added up


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
