"""The network that is being trained, as a model that answers. Its weights are used where they are, not copied."""

import copy
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vila_core.config import LanguageModelConfig
from vila_core.engine.limits import EngineConfig
from vila_core.language import LanguageModel
from vila_core.language.cache import Cache
from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_core.runtime import Vila
from vila_train.models import OpenedModel

ENGINE = EngineConfig(max_batch=8, media_cache_bytes=0, video_cache_bytes=0)


@contextmanager
def gathered_weights(root: nn.Module) -> Generator[None]:
    """Gather the shards of all weights of `root` on every rank, which all have to call this. Other weights stay."""
    shards = [module for module in root.modules() if isinstance(module, FSDPModule)]
    hooks = [(module, module._forward_pre_hooks, module._forward_hooks) for module in shards]  # pyright: ignore[reportPrivateUsage]
    for module in shards:
        module.unshard()
        # FSDP's hooks would shard the weights again after a layer has run. They also note which layers ran, and gather
        # them in that order in the next backward pass: ranks that did not evaluate would wait for other layers.
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        for module, before, after in hooks:
            module._forward_pre_hooks, module._forward_hooks = before, after  # pyright: ignore[reportPrivateUsage]
            module.reshard()


@contextmanager
def evaluation_mode(network: nn.Module) -> Generator[None]:
    """Switch dropout off, and afterwards every module back to what it was."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def live_model(opened: OpenedModel) -> Generator[Vila]:
    """Yield the network of `opened` as a model that answers. Sharded weights have to be gathered."""
    network = opened.network
    with evaluation_mode(network):
        yield Vila(
            _plain(network),
            opened.tokenizer,
            opened.template,
            config=network.config,
            limits=MediaLimits(),
            checkpoint=opened.base,
            engine=ENGINE,
        )


def _plain(network: VilaModel) -> VilaModel:
    """Return `network` with a language model that the engine runs as it is: see `PlainLanguageModel`."""
    plain = copy.copy(network)
    plain._modules = {**network._modules, "llm": PlainLanguageModel(network.llm).eval()}  # pyright: ignore[reportPrivateUsage]
    return plain


class PlainLanguageModel(nn.Module):
    """A language model without the engine's faster steps.

    They read the weights of linear layers themselves, and would miss adapters, recomputed and sharded layers.
    """

    def __init__(self, llm: LanguageModel):
        super().__init__()
        self.llm = llm

    @property
    def config(self) -> LanguageModelConfig:
        return self.llm.config

    def embed(self, ids: Tensor) -> Tensor:
        """See `LanguageModel`."""
        return self.llm.embed(ids)

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """See `LanguageModel`."""
        return self.llm(embeds, positions=positions, cache=cache, lengths=lengths)

    def decode_step(self, embeds: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """See `LanguageModel`."""
        return self.llm.decode_step(embeds, positions, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `LanguageModel`."""
        return self.llm.logits(hidden)

    def new_cache(self, batch_size: int, max_length: int) -> Cache:
        """See `LanguageModel`."""
        with torch.inference_mode(False):
            return self.llm.new_cache(batch_size, max_length)
