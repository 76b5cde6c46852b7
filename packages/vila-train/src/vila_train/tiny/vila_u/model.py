"""vila-tiny-u: the architecture and the tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from vila_core.chat import IMAGE_TOKEN, MEDIA_TOKENS, SENTINEL_TOKEN
from vila_core.config import (
    BasicImageEncoderConfig,
    BasicVideoEncoderConfig,
    DecoderConfig,
    DepthTransformerConfig,
    PixelConfig,
    PixelDecoderConfig,
    PreprocessConfig,
    ProjectorConfig,
    RQSiglipConfig,
    VilaConfig,
)
from vila_core.encoders import BasicImageEncoder
from vila_core.language.decoder import Decoder
from vila_core.model import VilaModel
from vila_core.plugins.loader import load_plugins
from vila_core.projectors import Projector
from vila_core.projectors import reset_parameters as reset_projector
from vila_core.tokenizer import Tokenizer
from vila_core.towers.rq_siglip.tower import RQSiglipTower
from vila_train.tiny.data import Encoder
from vila_train.tiny.model import tokenizer_corpus, train_tokenizer, write_tokenizer
from vila_train.tiny.recipes import SINGLE, SINGLE_CAPTIONS
from vila_train.tiny.world import DRAWINGS
from vila_train.tower_training.module import TowerTraining
from vila_train.tower_training.texts import TextEncoder

MODEL = "vila-tiny-u"
IMAGE_SIZE = 96
PATCH_SIZE = 8
POSITIONS = (IMAGE_SIZE // PATCH_SIZE) ** 2
CODES, DEPTH = 256, 4
CONTEXT = 1024
VOCABULARY = 768
"""Upper limit of the vocabulary, special tokens included."""
TEMPLATE = "vicuna_v1"
START, END = "<im_start>", "<im_end>"
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", SENTINEL_TOKEN, *MEDIA_TOKENS.values(), START, END, "<vi_start>", "<vi_end>")
"""The last four are those that VILA-U finds by counting from the end of the vocabulary."""


def tiny_u_config(vocab_size: int, *, keeps_ema: bool = False) -> VilaConfig:
    """Return the configuration: VILA-U's architecture with 3.9 million parameters.

    A picture is 12 x 12 positions of 4 codes. Each depth has a codebook of its own: the first depth would use a few
    codes of a shared one. `keeps_ema` keeps the running averages that train codebooks.
    """
    tower = RQSiglipConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        select_layer=-1,  # VILA-U reads the second-to-last layer; here a layer that is stored but not run costs 5 %
        codebook_size=CODES,
        code_depth=DEPTH,
        shared_codebook=False,
        keeps_ema=keeps_ema,
        decoder=PixelDecoderConfig(
            z_channels=64, channels=32, channel_multipliers=(1, 1, 2, 2), num_res_blocks=0, resolution=IMAGE_SIZE
        ),
    )
    language_model = DecoderConfig(
        architecture="llama",
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=vocab_size,
        max_length=CONTEXT,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    return VilaConfig(
        vision_tower=tower,
        projector=ProjectorConfig(name="mlp2x_gelu", in_size=tower.hidden_size, out_size=language_model.hidden_size),
        image_encoder=BasicImageEncoderConfig(end_tokens=None),
        video_encoder=BasicVideoEncoderConfig(end_tokens=None),
        language_model=language_model,
        generation_head=DepthTransformerConfig(
            hidden_size=language_model.hidden_size,
            embed_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            code_width=tower.hidden_size,
            codebook_size=CODES,
            code_depth=DEPTH,
            grid=tower.grid,
            dropout=0.0,
        ),
        pixels=PixelConfig(size=IMAGE_SIZE),
        preprocess=PreprocessConfig(image_aspect_ratio="resize", num_video_frames=8, video_as_images=True),
        chat_template=TEMPLATE,
        text_after_media="\n",
        splits_text_at_media=True,
        dtype="bfloat16",
    )


def corpus() -> Iterator[str]:
    """Yield the text that the tokenizer's merges are learned from, the template's own sentence included."""
    yield from tokenizer_corpus((*SINGLE, *SINGLE_CAPTIONS, *DRAWINGS))
    template = load_plugins().chat_templates.get(TEMPLATE)
    yield from [template.render([], {})] * 400


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer files to `folder`."""
    tokenizer = train_tokenizer(corpus(), SPECIAL_TOKENS, VOCABULARY, CONTEXT)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"})
    write_tokenizer(tokenizer, folder)


def make_encoder(tokenizer_folder: Path) -> Encoder:
    """Return the encoder, which renders samples as `vila_core` does for format `vila-u`."""
    return Encoder(
        Tokenizer.from_folder(tokenizer_folder),
        load_plugins().chat_templates.get(TEMPLATE),
        POSITIONS,
        BasicImageEncoder(BasicImageEncoderConfig(end_tokens=None)),
        text_after_media="\n",
        picture_answer=f"{START}{IMAGE_TOKEN}{END}",
        split=True,
    )


def new_network(
    tokenizer_folder: Path, device: torch.device | str, seed: int, *, trains_tower: bool = True
) -> VilaModel:
    """Return the model with random weights that depend only on `seed`; to train its tower, with codebooks' averages."""
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    torch.manual_seed(seed)
    network = VilaModel(tiny_u_config(len(tokenizer), keeps_ema=trains_tower), tokenizer)
    tower, projector, llm = tower_of(network), network.mm_projector, network.llm
    assert isinstance(projector, Projector)
    assert isinstance(llm, Decoder)
    tower.reset_parameters()
    reset_projector(projector)
    llm.reset_parameters()
    return network.to(device)


def new_tower_training(network: VilaModel) -> TowerTraining:
    """Return the tower of `network` with a small text encoder, which is trained from nothing beside it."""
    tower = tower_of(network)
    vocab_size, width = network.config.language_model.vocab_size, tower.config.hidden_size
    training = TowerTraining(tower, TextEncoder(vocab_size, CONTEXT, width, width))
    return training.to(next(tower.parameters()).device)


def tower_of(network: nn.Module) -> RQSiglipTower:
    """Return the tower of the model."""
    assert isinstance(network, VilaModel)
    assert isinstance(network.vision_tower, RQSiglipTower)
    return network.vision_tower
