"""How well a picture survives its codes: PSNR and SSIM of the pixels, and how much of the codebooks is used.

H height, W width, N images, D codes of a position, K codebook size
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from vila_core.errors import ConfigError

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2, _RANGE = 0.01, 0.03, 255.0
_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in luminance (ITU-R BT.601)."""

Pixels = NDArray[np.uint8]


def psnr(image: Pixels, reference: Pixels) -> float:
    """Return the peak signal-to-noise ratio in dB over all channels; infinity for equal images.

    Args:
        image: uint8 `[H, W]` or `[H, W, 3]`.
        reference: of the same shape.

    Raises:
        ConfigError: the shapes differ, or the pixels are not uint8.
    """
    _require_alike(image, reference)
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(_RANGE**2 / error)


def ssim(image: Pixels, reference: Pixels) -> float:
    """Return the mean structural similarity of the luminance, 1 for equal images.

    As in Wang et al. 2004 ("Image quality assessment: from error visibility to structural similarity"): a Gaussian
    window of 11 x 11 pixels with a deviation of 1.5, K1 = 0.01, K2 = 0.03, and only windows that lie inside the image.

    Args:
        image: uint8 `[H, W]` or `[H, W, 3]`, of at least 11 x 11 pixels.
        reference: of the same shape.

    Raises:
        ConfigError: the shapes differ, the image is smaller than a window, or the pixels are not uint8.
    """
    _require_alike(image, reference)
    if min(image.shape[:2]) < _WINDOW:
        raise ConfigError(
            f"SSIM compares windows of {_WINDOW} x {_WINDOW} pixels; the image has {image.shape[1]} x {image.shape[0]}."
        )
    x, y = _luminance(image), _luminance(reference)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(similarity.mean())


def _require_alike(image: Pixels, reference: Pixels) -> None:
    for one in (image, reference):
        if one.dtype != np.uint8 or one.ndim not in (2, 3) or (one.ndim == 3 and one.shape[2] != 3) or not one.size:
            raise ConfigError(
                f"Pixels are {one.dtype} {list(one.shape)}; expected uint8 [height, width] or [height, width, 3]."
            )
    if image.shape != reference.shape:
        raise ConfigError(f"The images have different shapes: {list(image.shape)} and {list(reference.shape)}.")


def _luminance(image: Pixels) -> NDArray[np.float64]:
    return image.astype(np.float64) if image.ndim == 2 else image.astype(np.float64) @ _LUMA


def _blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted mean of every window that lies inside: `[H, W]` -> `[H - 10, W - 10]`."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(values, _WINDOW, axis=axis)
        values = windows @ weights
    return values


@dataclass(frozen=True)
class CodeUsage:
    """How the codes at one depth are used.

    Attributes:
        used: number of different codes.
        share: `used` divided by the codebook's size.
        perplexity: 2 to the entropy of the codes in bits: how many codes, used equally often, are as diverse.
    """

    used: int
    share: float
    perplexity: float


def code_usage(codes: NDArray[np.integer], codebook_size: int) -> list[CodeUsage]:
    """Return the usage of each depth. `codes` are `[..., D]`, from 0 to `codebook_size - 1`.

    Raises:
        ConfigError: there are no codes, or one is outside the codebook.
    """
    if codes.ndim < 1 or not codes.size:
        raise ConfigError(f"Codes have the shape {list(codes.shape)}; expected at least one position.")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ConfigError(f"Codes go from {codes.min()} to {codes.max()}; expected 0 to {codebook_size - 1}.")
    flat = codes.reshape(-1, codes.shape[-1])
    return [_usage(np.bincount(column.astype(np.int64), minlength=codebook_size)) for column in flat.T]


def _usage(counts: NDArray[np.intp]) -> CodeUsage:
    shares = counts[counts > 0] / counts.sum()
    entropy = -float((shares * np.log2(shares)).sum())
    return CodeUsage(len(shares), len(shares) / len(counts), 2.0**entropy)


@dataclass(frozen=True)
class Quality:
    """Means over pictures. A picture counts at most 100 dB: equal ones have an infinite PSNR."""

    psnr: float
    ssim: float


MAX_PSNR = 100.0
"""In dB. Differences that small (one level of one value in 65,536 pixels) cannot be seen."""


def measure_pictures(images: Pixels, references: Pixels) -> Quality:
    """Compare decoded pictures with their originals.

    Args:
        images: uint8 `[N, H, W, 3]`.
        references: uint8 `[N, H', W', 3]`; resized to the decoded size if they differ.

    Raises:
        ConfigError: the pictures are too small for SSIM, or there are not as many of both.
    """
    if len(images) != len(references) or not len(images):
        raise ConfigError(f"There are {len(images)} pictures and {len(references)} originals.")
    height, width = images.shape[1:3]
    fitted = [_resized(reference, width, height) for reference in references]
    pairs = list(zip(images, fitted, strict=True))
    return Quality(
        sum(min(psnr(image, reference), MAX_PSNR) for image, reference in pairs) / len(pairs),
        sum(ssim(image, reference) for image, reference in pairs) / len(pairs),
    )


def _resized(image: Pixels, width: int, height: int) -> Pixels:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(PILImage.fromarray(image).resize((width, height), PILImage.Resampling.BICUBIC))
