"""Fixtures: a network with a few thousand parameters, and the tokenizer of the embedded model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.train.mixed_rows import mixed_row

import vila_core as vila
from vila_core.checkpoint import open_checkpoint, save_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.config import DecoderConfig, PixelConfig, ProjectorConfig, SiglipConfig, VilaConfig
from vila_core.model import VilaModel
from vila_core.plugins.loader import load_plugins
from vila_core.projectors import reset_parameters
from vila_core.tokenizer import Tokenizer
from vila_train.packing import PackedRow
from vila_train.tiny.data import Encoder, drawn_samples, make_shard
from vila_train.tiny.pools import Pool

MICRO_SIZE = 32


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(open_checkpoint(embedded_model()).tokenizer_path)


@pytest.fixture(scope="session")
def micro_encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer, load_plugins().chat_templates.get("qwen2"), tokens_per_picture=4)


@pytest.fixture(scope="session")
def micro_pools(micro_encoder: Encoder) -> dict[str, Pool]:
    sources = ("attribute", "number", "pair", "motion")
    return {
        source: Pool([make_shard(drawn_samples("train", source, 0, 24), micro_encoder, MICRO_SIZE)], "cpu")
        for source in sources
    }


@pytest.fixture(scope="session")
def row() -> PackedRow:
    """Texts, images and a video, packed for vila-tiny."""
    return mixed_row(vila.load("vila-tiny", dtype="float32", device="cpu"))


def micro_config(tokenizer: Tokenizer) -> VilaConfig:
    tower = SiglipConfig(
        image_size=MICRO_SIZE,
        patch_size=8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    decoder = DecoderConfig(
        architecture="qwen2",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=len(tokenizer),
        max_length=512,
        max_position_embeddings=512,
        attention_bias=True,
        tie_word_embeddings=True,
    )
    return VilaConfig(
        vision_tower=tower,
        projector=ProjectorConfig(name="mlp_downsample_2x2_fix", in_size=32, out_size=32),
        language_model=decoder,
        pixels=PixelConfig(size=MICRO_SIZE),
        dtype="float32",
    )


@pytest.fixture
def new_micro_network(tokenizer: Tokenizer) -> Callable[[], VilaModel]:
    config = micro_config(tokenizer)

    def build() -> VilaModel:
        torch.manual_seed(3)
        network = VilaModel(config, tokenizer)
        with torch.no_grad():
            network.llm.reset_parameters()
        return network

    return build


@pytest.fixture(scope="session")
def micro_checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `new_micro_network` as a checkpoint, in fp32."""
    torch.manual_seed(3)
    network = VilaModel(micro_config(tokenizer), tokenizer)
    network.llm.reset_parameters()
    reset_parameters(network.mm_projector)
    folder = tmp_path_factory.mktemp("micro") / "checkpoint"
    save_checkpoint(network.state_dict(), network.config, open_checkpoint(embedded_model()).tokenizer_path, folder)
    return folder
