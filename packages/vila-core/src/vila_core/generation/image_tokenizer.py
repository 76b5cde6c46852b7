"""Pictures to codes and back, without the language model: the tower of a model such as VILA-U, used alone.

N images, h x w grid of positions, D codes of a position
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage

from vila_core.config import PixelConfig, PreprocessConfig, RQSiglipConfig, VisionTowerConfig
from vila_core.errors import ConfigError
from vila_core.media import Image, MediaLimits
from vila_core.preprocess import plain_image
from vila_core.tiles import Normalization
from vila_core.towers.rq_siglip.decoder import to_bytes

if TYPE_CHECKING:
    from vila_core.media.inputs import ImageSource
    from vila_core.towers.rq_siglip.tower import RQSiglipTower

IMAGES_AT_ONCE = 16
"""Images that are encoded together."""


class ImageTokenizer:
    """Turns images into codes and codes into images.

        tokenizer = model.image_tokenizer
        codes = tokenizer.encode(["cat.png", "dog.png"])   # int64 [2, 16, 16, 4]
        pictures = tokenizer.decode(codes)                 # PIL images

    Attributes:
        grid: rows and columns of positions, (h, w).
        code_depth: D.
        codebook_size: codes are from 0 to this number, exclusive.
        image_size: (height, width) of decoded images in pixels.
    """

    def __init__(self, tower: "RQSiglipTower", pixels: PixelConfig, preprocess: PreprocessConfig):
        self.tower = tower
        self._pixels = pixels
        self._preprocess = preprocess
        self.grid = tower.grid
        self.code_depth = tower.code_depth
        self.codebook_size = tower.codebook_size
        self.image_size = tower.config.decoded_size

    def prepare(
        self, images: "ImageSource | Image | Sequence[ImageSource | Image]", limits: MediaLimits | None = None
    ) -> torch.Tensor:
        """Return images as the tower reads them: uint8 `[N, 3, S, S]`, resized without keeping the aspect ratio.

        Raises:
            MediaError: an image cannot be read or exceeds `limits`.
            ConfigError: there is no image.
        """
        given = images if isinstance(images, list | tuple) else [images]
        if not given:
            raise ConfigError("There are no images to encode.")
        loaded = [
            (one if isinstance(one, Image) else Image(one)).load(limits or MediaLimits())  # pyright: ignore[reportArgumentType]
            for one in given
        ]
        return torch.stack([plain_image(one, self._pixels, self._preprocess) for one in loaded])

    @torch.inference_mode()
    def encode(
        self, images: "ImageSource | Image | Sequence[ImageSource | Image]", limits: MediaLimits | None = None
    ) -> NDArray[np.int64]:
        """Return the codes of images, int64 `[N, h, w, D]`.

        Args:
            images: one image or a list: paths, URLs, bytes, arrays, PIL images or `Image`s.
            limits: on the size of images.

        Raises:
            MediaError: an image cannot be read or exceeds `limits`.
            ConfigError: there is no image.
        """
        return self.encode_bytes(self.prepare(images, limits))

    @torch.inference_mode()
    def encode_bytes(self, values: torch.Tensor) -> NDArray[np.int64]:
        """Return the codes of prepared images, uint8 `[N, 3, S, S]` -> int64 `[N, h, w, D]`."""
        weight = self.tower.post_quant_conv.weight
        table = Normalization.of(self._pixels).table(weight.device, weight.dtype)
        parts = [self.tower.encode(table(part.to(weight.device))) for part in values.split(IMAGES_AT_ONCE)]
        return torch.cat(parts).cpu().numpy()

    @torch.inference_mode()
    def decode_bytes(self, codes: "NDArray[np.integer] | torch.Tensor") -> NDArray[np.uint8]:
        """Return the images of codes `[N, h, w, D]` (or of one image, `[h, w, D]`), uint8 `[N, H, W, 3]`.

        Raises:
            ConfigError: the codes have another shape, are not whole numbers, or lie outside the codebook.
        """
        parts = self._as_tensor(codes).split(IMAGES_AT_ONCE)
        return np.concatenate([to_bytes(self.tower.decode(part)).cpu().numpy() for part in parts])

    def decode(self, codes: "NDArray[np.integer] | torch.Tensor") -> list[PILImage.Image]:
        """Return the images of codes as PIL images. Arguments and errors as in `decode_bytes`."""
        return [PILImage.fromarray(image) for image in self.decode_bytes(codes)]

    def _as_tensor(self, codes: "NDArray[np.integer] | torch.Tensor | Iterable[object]") -> torch.Tensor:
        device = self.tower.post_quant_conv.weight.device
        if not isinstance(codes, torch.Tensor):
            try:
                array = np.asarray(codes)
            except (ValueError, TypeError):
                raise ConfigError("Codes are a ragged list; expected one array of [N, h, w, D].") from None
            if array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.size and array.max() >= 2**63):
                raise ConfigError(
                    f"Codes are {array.dtype}; expected whole numbers from 0 to {self.codebook_size - 1}."
                )
            codes = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
        codes = codes[None] if codes.ndim == 3 else codes
        self.tower.check_codes(codes)
        return codes.to(device, torch.int64)


def require_codes(config: VisionTowerConfig) -> RQSiglipConfig:
    """Return the config of a tower with codes. Raises `ConfigError` for other towers."""
    if not isinstance(config, RQSiglipConfig):
        raise ConfigError(
            f"This model's vision tower is '{config.name}', which does not make codes of pictures. "
            "Use a VILA-U model, such as mit-han-lab/vila-u-7b-256."
        )
    return config
