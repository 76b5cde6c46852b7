"""Puts together what a run trains and what it reads."""

from contextlib import nullcontext

import torch

from vila_core.errors import ConfigError
from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_train.config import TrainConfig
from vila_train.loop.loader import FittingEncoder
from vila_train.loop.optimizer import freeze, require_trained
from vila_train.loop.step import Trainee
from vila_train.loss import TimeTokens
from vila_train.models import OpenedModel
from vila_train.packing.lanes import Order
from vila_train.parallel.fsdp import needs_shards, shard
from vila_train.parallel.mesh import make_mesh
from vila_train.parallel.world import World
from vila_train.samples import Encoder


def needs_group(config: TrainConfig) -> bool:
    """Return whether weights are sharded even on one rank: sharding is also what keeps fp32 weights beside bf16."""
    return config.compute.precision == "bf16" or bool(config.compute.sharded)


def takes_weights_from_first(config: TrainConfig, world: World) -> bool:
    """Return whether only rank 0 reads the weights. Each rank packs its own into 4 bits, so it needs all of them."""
    return world.size > 1 and (config.adapter is None or config.adapter.method != "qlora")


def build_trainee(opened: OpenedModel, config: TrainConfig, world: World) -> Trainee:
    """Freeze, adapt, prepare and shard the network, in place. Raises `TrainingError` as `adapt` does."""
    from vila_train.compute import prepare
    from vila_train.compute.master_weights import compute_in_bf16

    network = opened.network
    from_first = takes_weights_from_first(config, world)
    with nullcontext() if world.is_first or not from_first else torch.device("meta"):
        adapt(network, config)
    is_sharded = needs_shards(network, config.compute, world.size)
    if config.compute.precision == "bf16":
        _round_frozen(network)
    if not is_sharded:
        network.to(world.device)
    prepare(network, config.compute, world.device, is_sharded=is_sharded)
    if not is_sharded and config.compute.precision == "bf16":
        compute_in_bf16(network)
    trainee = Trainee(
        network,
        _time_tokens(opened, config, world.device),
        always_sees=is_sharded or _learns_of_pictures(network),
    )
    if is_sharded:
        mesh = make_mesh(world, config.compute)
        shard(trainee, mesh, config.compute, world.device, from_first=from_first)
    return trainee


def adapt(network: VilaModel, config: TrainConfig) -> None:
    """Freeze what is not trained, and add adapters, in place.

    Raises:
        TrainingError: adapters or 8-bit products do not fit the model, or nothing would be trained.
    """
    freeze(network, config)
    head = network.config.generation_head
    if head is not None and "generation_head" in config.tune and config.data.caption_dropout:
        head = head.model_copy(update={"knows_empty_prompt": True})
        network.config = network.config.model_copy(update={"generation_head": head})
    if config.adapter is not None:
        from vila_train.adapters import install

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # the first values are random
            install(network, config.adapter)
    require_trained(network)
    if config.compute.fp8:
        from vila_train.compute.fp8 import require_fp8_widths

        require_fp8_widths(network)


def _round_frozen(network: VilaModel) -> None:
    """Keep weights that are not trained in bf16 only."""
    for parameter in network.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)


def _learns_of_pictures(network: VilaModel) -> bool:
    """Return whether a part is trained that computes only for rows with pictures: tower, projector or head."""
    parts = [network.vision_tower, network.mm_projector, *([] if network.generation is None else [network.generation])]
    return any(parameter.requires_grad for part in parts for parameter in part.parameters())


def require_time_tokens(opened: OpenedModel, config: TrainConfig) -> None:
    """Raise `ConfigError` if soft targets are asked of a model without time tokens."""
    if config.soft_time_tokens is not None and opened.network.config.time_tokens is None:
        raise ConfigError(
            "soft_time_tokens needs a model with time tokens, and this one has none. "
            "Add some with model.num_time_tokens, or remove soft_time_tokens."
        )


def _time_tokens(opened: OpenedModel, config: TrainConfig, device: torch.device) -> TimeTokens | None:
    stated = opened.network.config.time_tokens
    if config.soft_time_tokens is None or stated is None:
        return None
    ids = [opened.tokenizer.encode(stated.format.format(t=t)) for t in range(stated.count)]
    return TimeTokens(torch.tensor([only for (only,) in ids], device=device), config.soft_time_tokens)


def make_encoder(opened: OpenedModel, config: TrainConfig) -> FittingEncoder:
    """Return what encodes samples in the loading processes. It needs shapes only, so it has no copy of the weights."""
    with torch.device("meta"):
        network = VilaModel(opened.network.config, opened.tokenizer)
    _ = network.tokens_per_tile  # worked out once, not in each process
    encoder = Encoder(network, opened.tokenizer, opened.template, MediaLimits())
    _ = encoder.pictures  # likewise, and the tokenizer is checked
    return FittingEncoder(encoder, config.data)


def open_order(config: TrainConfig) -> Order:
    """Return the samples of the mixture in the order of `config.seed`. Raises `TrainingError` as the mixture does."""
    from vila_train.data.mixture import open_mixture

    return open_mixture(config.data, config.seed)
