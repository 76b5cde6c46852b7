"""What training is measured on: networks of random weights, and packed rows of random samples.

A sample is an image of 1 to 7 tiles and a text of ragged length, of which 40 % are labelled. Rows are packed as in
training; their lengths differ. A stream of rows depends on its seed only, so ranks can share streams as they share the
lanes of a run.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import torch

from vila_core.bench.shapes import LANGUAGE_SHAPES, model_shape
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.config import DecoderConfig, VilaConfig
from vila_core.model import PromptBatch, VilaModel
from vila_core.prompt import PreparedMedium
from vila_core.tiles import Normalization, TileLayout, Tiles
from vila_core.tokenizer import Tokenizer
from vila_train.labels import IGNORE_INDEX
from vila_train.packing import PackedRow, pack

QWEN2_1_5B = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2048,
}  # fmt: skip


def network_config(shape: str, layers: int | None = None) -> VilaConfig:
    """Return the config of a model: "tiny", "nvila-2b", or a name in `LANGUAGE_SHAPES`.

    Args:
        shape: name.
        layers: of the language model; None: all.
    """
    base = model_shape("nvila-8b" if shape not in LANGUAGE_SHAPES else shape, "bfloat16")
    decoder = base.language_model
    assert isinstance(decoder, DecoderConfig)
    changes = dict[str, object]({"nvila-2b": QWEN2_1_5B, "tiny": TINY}.get(shape, {}))
    if layers is not None:
        changes["num_hidden_layers"] = layers
    decoder = DecoderConfig.model_validate(decoder.model_dump() | changes)
    tower = base.vision_tower
    if shape == "tiny":
        tower = tower.model_copy(update={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                         "num_attention_heads": 2})  # fmt: skip
    projector = base.projector.model_copy(update={"in_size": tower.hidden_size, "out_size": decoder.hidden_size})
    return base.model_copy(update={"language_model": decoder, "vision_tower": tower, "projector": projector})


def meta_network(config: VilaConfig, dtype: torch.dtype) -> VilaModel:
    """Return a network without weights."""
    tokenizer = Tokenizer.from_folder(open_checkpoint(EMBEDDED_MODEL).tokenizer_path)
    with torch.device("meta"):
        return VilaModel(config, tokenizer).to(dtype)


def random_network(config: VilaConfig, device: torch.device, dtype: torch.dtype) -> VilaModel:
    """Return a network of random weights on `device`, the same on every call."""
    network = meta_network(config, dtype)
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(float(name.endswith("weight")))
    return network


def ragged_rows(network: VilaModel, limit: int, device: torch.device, seed: int) -> Iterator[PackedRow]:
    """Yield packed rows of random samples without end.

    Args:
        network: that they are for.
        limit: on the tokens of a row.
        device: of the rows.
        seed: of this stream.
    """
    draw = random.Random(seed)
    pixels = torch.Generator(device).manual_seed(seed)
    while True:
        samples = [_sample(network, draw, limit) for _ in range(512)]
        for chosen in pack([length for length, _, _ in samples], limit):
            yield _row([samples[index] for index in chosen], draw, pixels, network, device)


def _sample(network: VilaModel, draw: random.Random, limit: int) -> tuple[int, int, PreparedMedium]:
    """Return length, tokens of the image, and the image."""
    pixels = network.config.pixels
    tiles = draw.choices(range(1, 8), weights=(8, 1, 4, 2, 3, 1, 3))[0]
    values = torch.zeros(1, dtype=torch.uint8).expand(tiles, 3, pixels.size, pixels.size)  # `_row` draws them
    medium = PreparedMedium("image", Tiles(values, TileLayout("separate", 1, tiles), Normalization.of(pixels)))
    media = network.num_tokens(medium)
    text = min(int(draw.lognormvariate(5.6, 0.8)) + 32, limit - media)
    return media + text, media, medium


def _row(
    samples: list[tuple[int, int, PreparedMedium]],
    draw: random.Random,
    pixels: torch.Generator,
    network: VilaModel,
    device: torch.device,
) -> PackedRow:
    vocabulary = network.config.language_model.vocab_size
    ids: list[int] = []
    places: list[int] = []
    labels: list[int] = []
    for length, media, _ in samples:
        places += range(len(ids) + 16, len(ids) + 16 + media)
        own = [draw.randrange(vocabulary) for _ in range(length)]
        answer = int(0.4 * (length - media))
        ids += own
        labels += [IGNORE_INDEX] * (length - answer) + own[length - answer :]
    media_on_device = [
        replace(medium, tiles=replace(medium.tiles, values=_random_pixels(medium.tiles, pixels, device)))
        for *_, medium in samples
    ]
    batch = PromptBatch(
        torch.tensor(ids, device=device),
        torch.tensor(places, device=device),
        media_on_device,
        [length for length, *_ in samples],
    )
    labelled = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
    return PackedRow(
        batch,
        torch.tensor(labels, device=device),
        [str(index) for index in range(len(samples))],
        torch.tensor([place - 1 for place in labelled], device=device),
        torch.tensor([labels[place] for place in labelled], device=device),
    )


def _random_pixels(tiles: Tiles, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    return torch.randint(0, 256, tiles.values.shape, dtype=torch.uint8, device=device, generator=generator)
