"""Opens the model that a run starts from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from torch import nn

from vila_core.chat import ChatTemplate
from vila_core.checkpoint import Checkpoint, TensorEntry, Weights, load_weights
from vila_core.config import VilaConfig
from vila_core.errors import CheckpointError, ConfigError
from vila_core.model import VilaModel
from vila_core.template_choice import choose_template
from vila_core.tokenizer import Tokenizer
from vila_train.added_tokens import add_time_tokens
from vila_train.base_model import open_base
from vila_train.config import ModelConfig, TrainConfig
from vila_train.model_changes import changed


@dataclass(frozen=True)
class OpenedModel:
    """A model to train.

    Attributes:
        network: in fp32 in main memory, with the changes of its `ModelConfig`; or without weights.
        tokenizer: of the model.
        template: of its conversations.
        tokenizer_path: folder with the tokenizer's files.
        base: the checkpoint that training starts from; None for a new model.
        has_new_projector: whether the projector is not trained yet.
        files: keeps `tokenizer_path` until the model is forgotten, if it is a temporary folder.
    """

    network: VilaModel
    tokenizer: Tokenizer
    template: ChatTemplate
    tokenizer_path: Path
    base: Checkpoint | None
    has_new_projector: bool = False
    files: "TemporaryDirectory[str] | None" = None


def open_model(config: ModelConfig, seed: int, *, weights: bool = True) -> OpenedModel:
    """Return the model of `config`. New weights depend on `seed` only.

    Args:
        config: of the model.
        seed: of the weights of a new projector.
        weights: read them; otherwise the network is on the meta device and has shapes only.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, unsafe, quantized or does not match its config.
        ConfigError: the changes do not fit the model.
    """
    checkpoint = open_base(config)
    if checkpoint.quantization is not None:
        raise CheckpointError(
            f"{checkpoint.path} is quantized ({checkpoint.quantization.method}). Training needs the checkpoint that it "
            "was made from; adapter.method=qlora quantizes that one while it trains."
        )
    model_config = changed(checkpoint.config, config)
    tokenizer = Tokenizer.from_folder(checkpoint.tokenizer_path)
    tokenizer_path, files = checkpoint.tokenizer_path, None
    if model_config.time_tokens is not None and config.num_time_tokens:
        files = add_time_tokens(tokenizer, tokenizer_path, model_config.time_tokens)
        tokenizer_path = tokenizer_path if files is None else Path(files.name)
    vocab_size = max(model_config.language_model.vocab_size, len(tokenizer))
    language_model = model_config.language_model.model_copy(update={"vocab_size": vocab_size})
    model_config = model_config.model_copy(update={"language_model": language_model})
    # A template that the user names may differ from the checkpoint's: the model learns it.
    stated = None if config.chat_template is not None else model_config.chat_template
    template = choose_template(config.chat_template, stated, tokenizer)
    with torch.device("meta"):
        network = _build(model_config, tokenizer, checkpoint.path)
    is_new = config.new is not None or model_config.projector != checkpoint.config.projector
    if weights:
        _load(network, checkpoint, vocab_size, seed if is_new else None)
    base = None if config.new is not None else checkpoint
    return OpenedModel(network, tokenizer, template, tokenizer_path, base, is_new, files)


def require_context(config: TrainConfig) -> None:
    """Raise `ConfigError` if samples may be longer than the context of the model. No weights are read."""
    context = changed(open_base(config.model).config, config.model).language_model.max_length
    if config.data.max_length > context:
        raise ConfigError(
            f"data.max_length is {config.data.max_length:,}, but the model's context is {context:,} tokens. Lower it, "
            "or raise model.max_length if the language model has more positions."
        )


def _build(config: VilaConfig, tokenizer: Tokenizer, path: Path) -> VilaModel:
    try:
        return VilaModel(config, tokenizer)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _load(network: VilaModel, checkpoint: Checkpoint, vocab_size: int, seed: int | None) -> None:
    """Read the weights in fp32; make those of the projector anew if `seed` is given."""
    if seed is None:
        load_weights(network, checkpoint, device="cpu", dtype=torch.float32, vocab_size=vocab_size)
        return
    others = {name: part for name, part in network.named_children() if name != _PROJECTOR}
    kept = replace(checkpoint, weights=Selected(checkpoint.weights, lambda name: not name.startswith(f"{_PROJECTOR}.")))
    load_weights(nn.ModuleDict(others), kept, device="cpu", dtype=torch.float32, vocab_size=vocab_size)
    projector = cast("nn.Module", network.mm_projector)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector.to_empty(device="cpu")
        for module in projector.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()


_PROJECTOR = "mm_projector"


@dataclass(frozen=True)
class Selected:
    """Some of the weights of a checkpoint: those whose name `keep` accepts."""

    weights: Weights
    keep: Callable[[str], bool]

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        return {name: entry for name, entry in self.weights.entries.items() if self.keep(name)}

    def shards(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor on `device`)."""
        return ((name, tensor) for name, tensor in self.weights.shards(device) if self.keep(name))

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (name, its bytes in chunks)."""
        return ((name, chunks) for name, chunks in self.weights.stream() if self.keep(name))
