"""Pictures to codes and back: in Python, in files and on the command line."""

import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tests.vila_u_checkpoint import RECORDED
from torch.nn import functional as F

import vila_core as vila
from vila_core.cli.main import main
from vila_core.config import DepthTransformerConfig, PixelDecoderConfig
from vila_core.errors import ConfigError, MediaError
from vila_core.generation.code_files import read_codes, write_codes
from vila_core.generation.depth_transformer import DepthTransformer, DepthTransformerHead
from vila_core.generation.image_tokenizer import ImageTokenizer
from vila_core.generation.reconstruction import code_usage, measure_pictures, psnr, ssim
from vila_core.towers.rq_siglip.decoder import PixelDecoder, to_bytes
from vila_core.towers.rq_siglip.quantizer import ResidualQuantizer

PICTURE = RECORDED / "inputs" / "image_1.png"


@pytest.fixture(scope="module")
def tokenizer(tiny_u: Path) -> ImageTokenizer:
    return vila.load_image_tokenizer(tiny_u, device="cpu")


def test_encodes_what_a_loaded_model_encodes(tiny_u: Path, tokenizer: ImageTokenizer):
    own = vila.load(tiny_u, device="cpu").image_tokenizer
    pictures = [PICTURE, PILImage.open(RECORDED / "inputs" / "image_0.png")]
    codes = tokenizer.encode(pictures)
    assert codes.dtype == np.int64
    assert codes.shape == (2, 4, 4, 4)
    assert np.array_equal(codes, own.encode(pictures))
    assert np.array_equal(codes[:1], tokenizer.encode(PICTURE))  # alone and together
    decoded = tokenizer.decode(codes)
    assert [picture.size for picture in decoded] == [(64, 64)] * 2
    alone = tokenizer.decode_bytes(torch.from_numpy(codes[0]))[0]
    assert np.abs(np.asarray(decoded[0], dtype=int) - alone).max() <= 1


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17])
def test_decoding_in_chunks(tokenizer: ImageTokenizer, count: int):
    codes = np.random.default_rng(count).integers(0, 64, (count, 4, 4, 4))
    together = tokenizer.decode_bytes(codes)
    assert together.shape == (count, 64, 64, 3)
    alone = tokenizer.decode_bytes(codes[-1])[0]
    assert np.abs(together[-1].astype(int) - alone).max() <= 1


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "CMYK", "1"])
def test_all_kinds_of_pictures(tokenizer: ImageTokenizer, mode: str):
    """They become RGB before they are resized."""
    picture = PILImage.open(PICTURE).convert("RGB").convert(mode)
    assert np.array_equal(tokenizer.encode(picture), tokenizer.encode(picture.convert("RGB")))


BAD_CODES: dict[str, tuple[object, str]] = {
    "too large": (np.full((1, 4, 4, 4), 64), "0 to 63"),
    "negative": (np.full((1, 4, 4, 4), -1), "0 to 63"),
    "another depth": (np.zeros((1, 4, 4, 3), int), "shape"),
    "another grid": (np.zeros((1, 5, 4, 4), int), "shape"),
    "flat": (np.zeros(64, int), "shape"),
    "none": (np.zeros((0, 4, 4, 4), int), "shape"),
    "fractions": (np.zeros((1, 4, 4, 4)), "whole numbers"),
    "truth": (np.zeros((1, 4, 4, 4), bool), "whole numbers"),
    "text": (np.full((1, 4, 4, 4), "a"), "whole numbers"),
    "objects": (np.full((1, 4, 4, 4), None), "whole numbers"),
    "ragged": ([[1], [1, 2]], "ragged"),
    "huge": (np.full((1, 4, 4, 4), 2**63, np.uint64), "whole numbers"),
    "tensor of fractions": (torch.zeros(1, 4, 4, 4), "whole numbers"),
}


@pytest.mark.parametrize("name", BAD_CODES)
def test_bad_codes(tokenizer: ImageTokenizer, name: str):
    codes, said = BAD_CODES[name]
    with pytest.raises(ConfigError, match=said):
        tokenizer.decode(codes)  # pyright: ignore[reportArgumentType]


def test_models_without_codes():
    with pytest.raises(ConfigError, match="does not make codes"):
        vila.load_image_tokenizer("vila-tiny")


def test_nothing_to_encode(tokenizer: ImageTokenizer):
    with pytest.raises(ConfigError, match="no images"):
        tokenizer.encode([])


@pytest.mark.parametrize("size", [64, 2**16, 2**16 + 1])
def test_files_of_codes(tmp_path: Path, size: int):
    codes = np.random.default_rng(0).integers(0, size, (2, 4, 4, 4))
    write_codes(tmp_path / "codes.npz", codes, size)
    found, stated = read_codes(tmp_path / "codes.npz")
    assert np.array_equal(found, codes)
    assert stated == size


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def member(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("codes.npy", content)
    return file.getvalue()


def header(text: str) -> bytes:
    padded = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


class Evil:
    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        import os

        return os._exit, (3,)


BAD_FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"these are no codes",
    "picture": PICTURE.read_bytes(),
    "pickle": pickle.dumps([1]),
    "archive without codes": npz(other=np.zeros(3, int)),
    "empty archive": npz(),
    "pickled codes": npz(codes=np.array([Evil()], dtype=object)),
    "fractions": npz(codes=np.zeros((1, 4, 4, 4))),
    "five dimensions": npz(codes=np.zeros((1, 1, 4, 4, 4), int)),
    "beyond the file": member(header("{'descr': '<i8', 'fortran_order': False, 'shape': (4, 4, 4), }")),
    "gigabytes": member(header("{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999,), }")),
    "negative shape": member(header("{'descr': '<i8', 'fortran_order': False, 'shape': (-4, 4), }")),
    "large sizes beside a 0": header(
        "{'descr': '<i8', 'fortran_order': False, 'shape': (0, 4194304, 4194304, 4194304), }"
    ),
    "true as a size": header("{'descr': '<i8', 'fortran_order': False, 'shape': (True, 1), }") + bytes(8),
    "code in the header": member(header("__import__('os').abort()")),
    "nested header": member(header("[" * 100)),
    "no header": member(b"codes"),
    "unknown version": member(b"\x93NUMPY\x09\x00"),
    "cut off": npz(codes=np.zeros((1, 4, 4, 4), int))[:-30],
    "bad size": npz(codes=np.zeros((1, 4, 4, 4), int), codebook_size=np.array([-5])),
    "many sizes": npz(codes=np.zeros((1, 4, 4, 4), int), codebook_size=np.arange(50)),
    "numbers beyond 63 bits": npz(codes=np.full((1, 4, 4, 4), 2**64 - 1, np.uint64)),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str):
    (tmp_path / "codes.npz").write_bytes(BAD_FILES[name])
    with pytest.raises(MediaError) as caught:
        read_codes(tmp_path / "codes.npz")
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path):
    for path in (tmp_path / "missing.npz", tmp_path):
        with pytest.raises(MediaError):
            read_codes(path)


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, window by window."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found: list[float] = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = (image[row : row + 11, column : column + 11].astype(float) for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
            found.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize("shape", [(11, 11), (17, 13), (12, 30)])
def test_ssim_is_wangs(shape: tuple[int, int]):
    draw = np.random.default_rng(shape[1])
    x, noise = draw.integers(0, 256, shape), draw.integers(-40, 40, shape)
    y = (x + noise).clip(0, 255)
    x, y = x.astype(np.uint8), y.astype(np.uint8)
    assert ssim(x, y) == pytest.approx(slow_ssim(x, y), abs=1e-9)
    assert ssim(x, x) == pytest.approx(1)
    gray = np.repeat(x[..., None], 3, axis=2)
    assert ssim(gray, np.repeat(y[..., None], 3, axis=2)) == pytest.approx(ssim(x, y), abs=1e-9)


def test_psnr():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black + np.uint8(255)) == pytest.approx(0)
    assert psnr(black, black + np.uint8(1)) == pytest.approx(20 * math.log10(255))
    assert psnr(black, black) == math.inf
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    assert measure_pictures(pictures, np.zeros((2, 32, 32, 3), np.uint8)).psnr == 100


def test_unequal_pictures_are_refused():
    with pytest.raises(ConfigError, match="different shapes"):
        psnr(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8))
    with pytest.raises(ConfigError, match="11 x 11"):
        ssim(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    with pytest.raises(ConfigError, match="uint8"):
        psnr(np.zeros((4, 4)), np.zeros((4, 4)))  # pyright: ignore[reportArgumentType]


def test_code_usage():
    codes = np.stack([np.arange(64) % 4, np.zeros(64, int)], axis=-1).reshape(4, 4, 4, 2)
    first, second = code_usage(codes, 8)
    assert (first.used, first.share, first.perplexity) == (4, 0.5, pytest.approx(4))
    assert (second.used, second.perplexity) == (1, pytest.approx(1))
    with pytest.raises(ConfigError, match="expected 0 to 2"):
        code_usage(codes, 3)


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `vila tokenize-image` and return its exit status and all that it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main(["tokenize-image", *map(str, arguments)])
        printed = capfd.readouterr()
        return int(done.value.code or 0), printed.out + printed.err

    return run


def test_there_and_back(tiny_u: Path, tokenizer: ImageTokenizer, tmp_path: Path, run: Run):
    other = RECORDED / "inputs" / "image_0.png"
    status, printed = run(PICTURE, other, "-o", tmp_path / "codes.npz", "-m", tiny_u, "--measure", "--json")
    assert status == 0, printed
    facts = json.loads(printed)
    assert facts["shape"] == [2, 4, 4, 4]
    assert len(facts["perplexity"]) == 4
    assert np.array_equal(read_codes(tmp_path / "codes.npz")[0], tokenizer.encode([PICTURE, other]))
    status, printed = run(tmp_path / "codes.npz", "--decode", "-o", tmp_path / "again.png", "-m", tiny_u)
    assert status == 0, printed
    for index, expected in enumerate(tokenizer.decode(tokenizer.encode([PICTURE, other]))):
        assert np.array_equal(np.asarray(PILImage.open(tmp_path / f"again_{index}.png")), np.asarray(expected))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([PICTURE, "-o", "codes.png"], "ends in .npz"),
        (["codes.npz", "--decode", "-o", "picture.jpg"], "ends in .png"),
        (["a.npz", "b.npz", "--decode", "-o", "picture.png"], "one file of codes"),
        (["codes.npz", "--decode", "--measure", "-o", "picture.png"], "no picture to compare"),
        (["missing.png", "-o", "codes.npz"], "missing.png"),
        ([PICTURE, "--decode", "-o", "picture.png"], "holds no codes"),
    ],
)
def test_wrong_use(
    tiny_u: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, arguments: list[object], said: str
):
    monkeypatch.chdir(tmp_path)
    status, printed = run(*arguments, "-m", tiny_u)
    assert status == 2
    assert said in " ".join(printed.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("decode", [False, True])
def test_where_nothing_can_be_written_no_model_is_loaded(tmp_path: Path, run: Run, decode: bool):
    write_codes(tmp_path / "codes.npz", np.zeros((2, 4, 4, 4), int), 16)
    (tmp_path / "folder_1.png").mkdir()
    (tmp_path / "folder.npz").mkdir()
    source = [tmp_path / "codes.npz", "--decode"] if decode else [PICTURE]
    for name, said in (("missing/a", "does not exist"), ("folder", "is a folder")):
        out = tmp_path / f"{name}.{'png' if decode else 'npz'}"
        status, printed = run(*source, "-o", out, "-m", "no-such-model")
        assert status == 2
        assert said in " ".join(printed.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npz", "folder.npz", "folder_1.png"]


def test_many_codes_one_of_which_is_wrong(tiny_u: Path, tokenizer: ImageTokenizer, tmp_path: Path, run: Run):
    codes = np.zeros((20, 4, 4, 4), int)
    codes[-1, 0, 0, 0] = tokenizer.codebook_size
    write_codes(tmp_path / "codes.npz", codes, tokenizer.codebook_size)
    status, printed = run(tmp_path / "codes.npz", "--decode", "-o", tmp_path / "a.png", "-m", tiny_u)
    assert status == 2
    assert "Were they made with another model?" in " ".join(printed.split())
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]
    write_codes(tmp_path / "codes.npz", np.zeros_like(codes), tokenizer.codebook_size)
    status, printed = run(tmp_path / "codes.npz", "--decode", "-o", tmp_path / "a.png", "-m", tiny_u)
    assert status == 0, printed
    assert len(list(tmp_path.glob("a_*.png"))) == 20


def test_codes_of_another_model(tiny_u: Path, tmp_path: Path, run: Run):
    write_codes(tmp_path / "codes.npz", np.zeros((1, 4, 4, 4), int), 16384)
    status, printed = run(tmp_path / "codes.npz", "--decode", "-o", tmp_path / "a.png", "-m", tiny_u)
    assert status == 2
    assert "codebook of 16,384" in " ".join(printed.split())


def test_quantizer_takes_the_nearest():
    """Against distances computed without the binomial formula, at several depths."""
    draw = torch.Generator().manual_seed(0)
    quantizer = ResidualQuantizer(16, 3, 8, shared=False)
    for depth in range(3):
        quantizer.codebook(depth).weight.data = torch.randn(17, 8, generator=draw)
    features = torch.randn(5000, 8, generator=draw)
    residual = features
    codes = quantizer.encode(features)
    for depth in range(3):
        book = quantizer.codebook(depth).weight[:16]
        assert torch.equal(
            codes[:, depth], torch.cdist(residual, book, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
        )
        residual = residual - book[codes[:, depth]]
    assert (codes < 16).all()  # the padding row is never chosen
    assert quantizer.encode(features[None])[0].equal(codes)


def test_straight_through_gradient(tokenizer: ImageTokenizer):
    tower = tokenizer.tower
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    tower(pixels).sum().backward()
    features = torch.autograd.grad(tower.features(pixels).sum(), pixels)[0]
    assert pixels.grad is not None
    torch.testing.assert_close(pixels.grad, features)


def test_decoder_levels():
    """Attention at the stated sides, counted from `resolution`; a level doubles the grid except the last to run."""
    config = PixelDecoderConfig(
        z_channels=8, channels=32, channel_multipliers=(1, 2, 4), num_res_blocks=1, attention_resolutions=(8, 16),
        resolution=32,
    )  # fmt: skip
    decoder = PixelDecoder(config)
    names = set(decoder.state_dict())
    assert {name.split(".")[1] for name in names if name.startswith("up.") and ".attn." in name} == {"1", "2"}
    assert {name.split(".")[1] for name in names if "upsample" in name} == {"1", "2"}
    assert "up.0.block.0.nin_shortcut.weight" in names
    assert decoder(torch.zeros(2, 8, 5, 3)).shape == (2, 3, 20, 12)


def test_bytes_are_rounded():
    pixels = torch.tensor([-2.0, -1.0, -0.99, 0.0, 0.999, 3.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_bytes(pixels)[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("depth", [1, 3, 16])
def test_cached_depth_is_uncached_depth(rows: int, depth: int):
    """Argmax of each code with keys and values cached equals running the growing prefix anew."""
    torch.manual_seed(depth)
    config = DepthTransformerConfig(
        hidden_size=12, embed_dim=16, num_hidden_layers=3, num_attention_heads=4, code_width=8, codebook_size=32,
        code_depth=depth, grid=(2, 2),
    )  # fmt: skip
    transformer = DepthTransformer(config).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    quantizer = ResidualQuantizer(32, depth, 8, shared=True)
    torch.nn.init.normal_(quantizer.codebook(0).weight)

    class Tower:
        def __init__(self) -> None:
            self.quantizer = quantizer

    head = DepthTransformerHead(transformer, Tower(), torch.nn.Identity())  # pyright: ignore[reportArgumentType]
    hidden = torch.randn(rows, 12)
    with torch.no_grad():
        chosen = head.choose(hidden, lambda _, logits: logits.argmax(-1))
        codes = torch.zeros(rows, depth, dtype=torch.int64)
        for index in range(depth):
            scores = transformer(hidden, quantizer.cumulative(codes))
            codes[:, index] = scores[:, index].argmax(-1)
        assert torch.equal(chosen, codes)
        alone = torch.cat([head.choose(row[None], lambda _, logits: logits.argmax(-1)) for row in hidden])
    assert torch.equal(alone, codes)


def test_no_gradient_reaches_the_codebook(tiny_u: Path):
    model = vila.load(tiny_u, device="cpu")
    head = model.network.generation_head
    assert head is not None
    model.network.requires_grad_(True)
    codes = torch.zeros(2, 4, dtype=torch.int64)
    F.cross_entropy(head.logits(torch.randn(2, 64), codes).flatten(0, 1), codes.flatten()).backward()
    assert all(parameter.grad is None for parameter in model.network.vision_tower.parameters())
    assert model.network.generation is not None
    assert all(parameter.grad is not None for parameter in model.network.generation.parameters())
