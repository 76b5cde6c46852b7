"""Opens the model that a run starts from."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vila_core.chat import ChatTemplate
from vila_core.checkpoint import Checkpoint, load_weights, open_checkpoint
from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.loading import choose_template
from vila_core.model import VilaModel
from vila_core.tokenizer import Tokenizer
from vila_train.config import ModelConfig


@dataclass(frozen=True)
class OpenedModel:
    """A model to train.

    Attributes:
        network: in fp32 in main memory, with the changes of its `ModelConfig`.
        tokenizer: of the model.
        template: of its conversations.
        tokenizer_path: folder with the tokenizer's files.
        base: the checkpoint that training starts from; None for a new model.
    """

    network: VilaModel
    tokenizer: Tokenizer
    template: ChatTemplate
    tokenizer_path: Path
    base: Checkpoint | None


def open_model(config: ModelConfig, seed: int) -> OpenedModel:
    """Return the model of `config`. New weights depend on `seed` only.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, unsafe or does not match its config.
    """
    torch.manual_seed(seed)
    checkpoint = open_checkpoint(config.path or EMBEDDED_MODEL)
    tokenizer = Tokenizer.from_folder(checkpoint.tokenizer_path)
    vocab_size = max(checkpoint.config.language_model.vocab_size, len(tokenizer))
    language_model = checkpoint.config.language_model.model_copy(update={"vocab_size": vocab_size})
    model_config = checkpoint.config.model_copy(update={"language_model": language_model})
    with torch.device("meta"):
        network = VilaModel(model_config, tokenizer)
    load_weights(network, checkpoint, device="cpu", dtype=torch.float32, vocab_size=vocab_size)
    template = choose_template(config.chat_template, model_config.chat_template, tokenizer)
    return OpenedModel(network, tokenizer, template, checkpoint.tokenizer_path, checkpoint)
