"""Fixtures: a small tokenizer and a small random language model that need no files."""

from collections.abc import Iterator

import pytest
import torch
from tests.raw_server import Server
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder
from vila_core.tokenizer import Tokenizer

CORPUS = [
    'the quick brown fox said "hello" and {"name": "fox", "legs": 4, "tags": ["a", "b"]} to the lazy dog.',
    "Grüße aus Köln, 日本語のテキスト, emoji 🙂🙃🚀 and more text: one, two, three, four. STOP here or stop there.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE with 320 entries: most characters outside ASCII are several tokens."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(CORPUS * 3, trainer)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    return Tokenizer(hf)


@pytest.fixture(scope="session")
def decoder(tokenizer: Tokenizer) -> Decoder:
    """A random decoder with a slightly larger vocabulary than the tokenizer, like released models."""
    config = DecoderConfig(
        architecture="qwen2",
        hidden_size=48,
        vocab_size=len(tokenizer) + 13,
        max_length=512,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=512,
        attention_bias=True,
        tie_word_embeddings=True,
    )
    decoder = Decoder(config)
    decoder.reset_parameters(std=0.3, generator=torch.Generator().manual_seed(11))
    return decoder.eval()


@pytest.fixture
def end(tokenizer: Tokenizer) -> frozenset[int]:
    """The stop tokens."""
    assert tokenizer.eos_token_id is not None
    return frozenset({tokenizer.eos_token_id})


@pytest.fixture
def server() -> Iterator[Server]:
    """A local server for the tests of the fetcher."""
    server = Server()
    yield server
    server.close()
