"""A small language model with random weights, of a size that the kernels for NVIDIA GPUs take."""

import torch

from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder


def small_decoder(max_length: int) -> Decoder:
    """Return the model in bfloat16, on a GPU if there is one, for up to `max_length` tokens."""
    config = DecoderConfig(
        architecture="llama", hidden_size=256, vocab_size=333, max_length=max_length, intermediate_size=512,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=64,
        max_position_embeddings=max_length,
    )  # fmt: skip
    decoder = Decoder(config)
    decoder.reset_parameters(std=0.1, generator=torch.Generator().manual_seed(0))
    return decoder.to("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16).requires_grad_(False)
