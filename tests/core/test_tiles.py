"""Pictures as bytes: normalization on the device, and digests that tell apart all that the network reads."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import vila_core as vila
from vila_core import tiles as module
from vila_core.config import PixelConfig, PreprocessConfig
from vila_core.preprocess import preprocess_image, preprocess_video
from vila_core.prompt import PreparedMedium
from vila_core.tiles import Normalization, TileLayout, Tiles, normalize

SIGLIP = PixelConfig(size=56)
CLIP = PixelConfig(
    size=56, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), crop=True
)
EVERY_BYTE = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)


def noise(width: int = 80, height: int = 60) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [SIGLIP, CLIP], ids=["siglip", "clip"])
def test_bytes_are_normalized_as_the_reference_does(config: PixelConfig, dtype: torch.dtype) -> None:
    normalization = Normalization.of(config)
    wanted = normalize(EVERY_BYTE, config).to(dtype)
    tiles = Tiles(EVERY_BYTE, normalization=normalization)
    assert torch.equal(tiles.pixels_on(torch.device("cpu"), dtype), wanted)
    table = normalization.table(torch.device("cpu"), dtype).values
    for values in (EVERY_BYTE, EVERY_BYTE.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)):
        on_a_gpu = module._gather(values, table)
        assert torch.equal(on_a_gpu, wanted)
        assert on_a_gpu.is_contiguous()


def test_values_that_are_normalized_already_are_kept() -> None:
    values = torch.randn(2, 3, 4, 4)
    assert torch.equal(Tiles(values).pixels, values)


def test_a_part_shares_memory() -> None:
    tiles = Tiles(EVERY_BYTE, TileLayout("separate", 1, 2), Normalization.of(CLIP))
    part = tiles.part(1, 5)
    assert len(part) == part.num_placeholders == 1
    assert part.values.data_ptr() == tiles.values[1].data_ptr()
    assert torch.equal(part.pixels, tiles.pixels[1:])


def test_pictures_are_kept_as_bytes() -> None:
    for tiles in (
        preprocess_image(noise(), SIGLIP, PreprocessConfig(), tile=False),
        preprocess_image(noise(), SIGLIP, PreprocessConfig(image_aspect_ratio="dynamic"), tile=True),
        preprocess_video([noise()] * 3, SIGLIP, PreprocessConfig()),
    ):
        assert tiles.values.dtype == torch.uint8
        assert tiles.values.nbytes * 4 == tiles.pixels.nbytes


def of(config: PixelConfig, kind: str = "image", **preprocess: object) -> bytes:
    settings = PreprocessConfig.model_validate(preprocess)
    return PreparedMedium(kind, preprocess_image(noise(), config, settings, tile=True)).digest


def test_whatever_changes_what_the_network_reads_changes_the_digest() -> None:
    """Two of these with the same digest would share pages of the KV cache."""
    plain = preprocess_image(noise(), SIGLIP, PreprocessConfig(), tile=False)
    digests = {
        "siglip": of(SIGLIP),
        "another mean": of(SIGLIP.model_copy(update={"mean": (0.5, 0.5, 0.25)})),
        "another deviation": of(SIGLIP.model_copy(update={"std": (0.5, 0.25, 0.5)})),
        "channels' means exchanged": of(SIGLIP.model_copy(update={"mean": (0.25, 0.5, 0.5)})),
        "bilinear": of(SIGLIP.model_copy(update={"resample": "bilinear"}), image_aspect_ratio="other"),
        "another size": of(SIGLIP.model_copy(update={"size": 28})),
        "shortest edge, cropped": of(
            SIGLIP.model_copy(update={"resize": "shortest_edge", "crop": True}), image_aspect_ratio="other"
        ),
        "clip": of(CLIP),
        "clip, cropped": of(CLIP.model_copy(update={"resize": "shortest_edge"}), image_aspect_ratio="other"),
        "padded": of(SIGLIP, image_aspect_ratio="pad"),
        "tiles": of(SIGLIP, image_aspect_ratio="dynamic"),
        "fewer tiles": of(SIGLIP, image_aspect_ratio="dynamic", max_tiles=2),
        "scales": of(SIGLIP, image_aspect_ratio="dynamic_s2", s2_scales=(56, 112)),
        "a video": of(SIGLIP, "video"),
        "one tile of two": replace(plain, layout=TileLayout("separate", 1, 2)).digest("image"),
        "the same grid, turned": replace(plain, layout=TileLayout("separate", 2, 1)).digest("image"),
        "merged": replace(plain, layout=TileLayout("merged", 2, 1)).digest("image"),
        "twice": replace(plain, values=plain.values.repeat(2, 1, 1, 1)).digest("image"),
        "turned": replace(plain, values=plain.values.transpose(2, 3)).digest("image"),
        "channels exchanged": replace(plain, values=plain.values.flip(1)).digest("image"),
        "normalized": Tiles(plain.pixels).digest("image"),
        "bytes as numbers": Tiles(plain.values.float()).digest("image"),
        "one bit": replace(plain, values=plain.values ^ torch.eye(56, dtype=torch.uint8)).digest("image"),
    }
    for (one, first), (other, second) in combinations(digests.items(), 2):
        assert first != second, (one, other)


def test_the_same_picture_has_the_same_digest_whatever_its_memory_layout() -> None:
    tiles = preprocess_image(noise(), SIGLIP, PreprocessConfig(), tile=False)
    other = replace(tiles, values=tiles.values.contiguous())
    assert tiles.values.stride() != other.values.stride()
    assert tiles.digest("image") == other.digest("image") == of(SIGLIP)


def test_threads_hash_the_parts_of_a_picture_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HASHED_AT_ONCE", 1000)
    monkeypatch.setattr(module, "THREADED_BYTES", 1000)
    tiles = Tiles(torch.randint(0, 256, (5, 3, 17, 19), dtype=torch.uint8), normalization=Normalization.of(SIGLIP))
    changed = replace(tiles, values=tiles.values.clone())
    changed.values[-1, -1, -1, -1] ^= 1  # in the last part, which is shorter
    digests: list[tuple[bytes, bytes]] = []
    with ThreadPoolExecutor(3) as threads:
        for pool in (threads, None):
            monkeypatch.setattr(module, "hash_threads", lambda pool=pool: pool)
            digests.append((tiles.digest("video"), changed.digest("video")))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[0][1]


def test_answers_are_those_of_normalized_pixels(tmp_path: Path) -> None:
    model = vila.load("vila-tiny", device="cpu")
    prepared = model.prepare([vila.Image(np.asarray(noise())), "What is it?"])
    medium = prepared.media[0]
    normalized = replace(prepared, media=[replace(medium, tiles=Tiles(medium.tiles.pixels, medium.tiles.layout))])
    assert torch.equal(model.inspect(prepared).inputs_embeds, model.inspect(normalized).inputs_embeds)
    assert normalized.media[0].digest != medium.digest
