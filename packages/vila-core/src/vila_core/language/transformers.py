"""Any causal language model of transformers behind the interface of `LanguageModel`.

B batch, T new tokens, D width, V vocabulary
"""

import copy
import logging
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from vila_core.config import TransformersConfig
from vila_core.device_memory import is_out_of_memory
from vila_core.errors import ConfigError
from vila_core.language.cache import Cache
from vila_core.language.transformers_config import build_config

MAX_BUFFER_BYTES = 2**30
"""Limit on tensors that are computed instead of loaded. The largest known (GPT-2's causal masks) take 50 MB."""


class TransformersCache:
    """A `DynamicCache` of transformers, which grows by itself."""

    def __init__(self, config: PretrainedConfig):
        self.past = DynamicCache(config=config)
        self.padding: torch.Tensor | None = None
        """How many slots at the start of each row hold padding, `[B]`; None if there is no padding."""

    @property
    def length(self) -> int:
        """Slots filled in every row, padding included."""
        return int(self.past.get_seq_length())

    def up_to(self, num_slots: int) -> Self:
        """Return the cache itself, which has no fixed size."""
        return self


class TransformersLanguageModel(nn.Module):
    """An `AutoModelForCausalLM` built from its config, with the module and weight names that transformers uses.

    Raises:
        ConfigError: transformers has no such architecture, or not with these values. Code of a checkpoint is never run.
    """

    def __init__(self, config: TransformersConfig):
        super().__init__()
        self.config = config
        model = _build(config)
        # Not a module of the tree: only its parts are, so that their names have no prefix.
        self._whole = (model, _head(model))
        self._is_tied = bool(model.config.tie_word_embeddings)
        for name, part in model.named_children():
            # A tied head is the embedding, and no checkpoint holds it under its own name.
            if not (self._is_tied and part is model.get_output_embeddings()):
                self.add_module(name, part)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[B, T]` -> embeddings `[B, T, D]`."""
        with self._failures_named():
            return self._whole[0].get_input_embeddings()(ids)

    def forward(
        self,
        embeds: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        cache: Cache | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings `[B, T, D]` -> hidden states after the final norm `[B, T, D]`."""
        assert cache is None or isinstance(cache, TransformersCache), "the model fills caches of its own new_cache"
        if lengths is None:
            padding = None if cache is None else cache.padding
            return self._run(embeds, positions, cache, padding)
        # The cache appends columns, so padding must be at the left for a row's tokens to stay together.
        padding = embeds.shape[1] - lengths
        if cache is not None:
            cache.padding = padding
        columns = torch.arange(embeds.shape[1], device=embeds.device)[None]
        positions = (columns - padding[:, None]).clamp(min=0)
        hidden = self._run(_roll(embeds, padding), positions, cache, padding)
        return _roll(hidden, -padding)

    def _run(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor | None,
        cache: TransformersCache | None,
        padding: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run the base model on rows with `padding` `[B]` columns of padding at the left."""
        columns = torch.arange((0 if cache is None else cache.length) + embeds.shape[1], device=embeds.device)
        with self._failures_named():
            output = self._whole[0].base_model(
                inputs_embeds=embeds,
                attention_mask=None if padding is None else (columns >= padding[:, None]).long(),
                position_ids=None if positions is None else positions.expand(len(embeds), -1),
                past_key_values=None if cache is None else cache.past,
                use_cache=cache is not None,
            )
            return output.last_hidden_state

    def decode_step(self, embeds: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        """One new token of each row, `[B, 1, D]` -> hidden states `[B, 1, D]`."""
        return self(embeds, positions=positions, cache=cache)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., D]` -> scores `[..., V]`, with the scale or cap that the architecture gives them."""
        model, head = self._whole
        if self._is_tied:  # loading may have given the embedding another parameter
            model.get_output_embeddings().weight = model.get_input_embeddings().weight  # pyright: ignore[reportOptionalMemberAccess]
        with self._failures_named():
            scores = head(inputs_embeds=hidden.reshape(1, -1, hidden.shape[-1]), use_cache=False).logits
            return scores.reshape(*hidden.shape[:-1], -1)

    def _failures_named(self) -> AbstractContextManager[None]:
        return _failures_named(f"cannot run this '{self.config.hf_config.get('model_type')}'")

    def new_cache(self, batch_size: int, max_length: int) -> TransformersCache:
        """Return an empty cache; it takes sizes, device and dtype from the first tensors."""
        return TransformersCache(self._whole[0].config)

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to `device` the buffers that are not in checkpoints.

        They hold their values from the start, in a dtype of their own.
        """
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)  # pyright: ignore[reportPrivateUsage]


@dataclass
class _Output(MoeModelOutputWithPast):
    """A base model's output with every field that some head looks up."""

    cross_attentions: tuple[torch.Tensor, ...] | None = None


class _Passthrough(nn.Module):
    """Stands where the base model stands: its output is its input."""

    @property
    def decoder(self) -> nn.Module:
        """OPT calls the decoder inside its base model."""
        return self

    def forward(self, *_: object, inputs_embeds: torch.Tensor, **__: object) -> _Output:
        return _Output(last_hidden_state=inputs_embeds)  # pyright: ignore[reportArgumentType]


def _roll(rows: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Rotate each row of `[B, T, D]` to the right by its shift."""
    length = rows.shape[1]
    source = (torch.arange(length, device=rows.device)[None] - shifts[:, None]) % length  # [B, T]
    return rows.gather(1, source[..., None].expand_as(rows))


def _head(model: PreTrainedModel) -> nn.Module:
    """Return a model of the same parts without the base model: what its `forward` does to hidden states is the head.

    Architectures scale or cap their logits there, each in its own way and under its own config key.
    """
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: _Passthrough()}  # pyright: ignore[reportPrivateUsage]
    return head


def _build(config: TransformersConfig) -> PreTrainedModel:
    model_type = str(config.hf_config.get("model_type"))[:100]
    with _failures_named(f"cannot build a causal language model of type '{model_type}'"), _quiet():
        hf_config = build_config(config.hf_config, config.vocab_size)
        _check_buffers(hf_config)
        with _parameters_on_meta() if torch.get_default_device().type == "meta" else nullcontext():
            return AutoModelForCausalLM.from_config(hf_config, dtype=torch.get_default_dtype(), trust_remote_code=False)


def _check_buffers(hf_config: PretrainedConfig) -> None:
    """Raise `ConfigError` if the tables that are not in checkpoints (positions, masks) would take too much memory."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(copy.deepcopy(hf_config), trust_remote_code=False)
    nbytes = sum(buffer.nbytes for buffer in skeleton.buffers())
    if nbytes > MAX_BUFFER_BYTES:
        raise ConfigError(f"its tables of positions and masks take {nbytes} bytes. Check the sizes in its config.")


@contextmanager
def _failures_named(what: str) -> Generator[None]:
    """Raise a `ConfigError` for whatever transformers raises on values that do not fit together."""
    try:
        yield
    except Exception as error:  # KeyError, AssertionError, ImportError, …: each architecture fails in its own way
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(
            f"transformers {transformers.__version__} {what}: {kind}{reason[:300]} "
            "Check the language model's config, or install a version of transformers that has it."
        ) from error


@contextmanager
def _quiet() -> Generator[None]:
    """Hold back transformers' warnings: they are about settings that are not used, or that are errors here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _parameters_on_meta() -> Generator[None]:
    """Build modules with parameters on the meta device but real buffers, whose values no checkpoint could restore."""

    def to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)  # pyright: ignore[reportArgumentType]
    try:
        with torch.device("cpu"):
            yield
    finally:
        hook.remove()
