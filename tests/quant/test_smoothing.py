"""Eight-bit linears and the smoothing before them, against the recorded tower and by hand.

M rows, N outputs, K inputs, D width
"""

import copy
import json
import re
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
import torch.nn.functional as F
from tests.quant.conftest import COMMITTED, Recording
from torch import Tensor, nn

from vila_core.config import ClipConfig, InternVitConfig, RadioConfig, SiglipConfig
from vila_core.errors import ConfigError
from vila_core.towers.clip import ClipTower
from vila_core.towers.intern_vit import InternVitTower
from vila_core.towers.radio import RadioTower
from vila_core.towers.siglip import SiglipTower
from vila_core.towers.vit import Encoder, EncoderLayer, VisionTower
from vila_quant.errors import QuantizationError
from vila_quant.kernels.fp8 import multiply_fp8, multiply_fp8_reference, quantize_rows_fp8
from vila_quant.kernels.int8 import integer_product, multiply_int8, quantize_rows
from vila_quant.linears.eight_bit_linear import EightBitLinear
from vila_quant.quantizing.smoothing import (
    BranchLoss,
    channel_maxima,
    quantize_linear,
    quantize_tower,
    relative_error,
    smoothing_scales,
)

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
PARTS = {"qkv": QKV, "out": ("self_attn.out_proj",), "fc1": ("mlp.fc1",), "fc2": ("mlp.fc2",)}
"""By the name that the recording gives a product, the linears in it."""


class RecordedTower(VisionTower):
    """The layers of the recorded tower, without an embedding: `pixels` are hidden states `[N, P, D]`."""

    def __init__(self, weights: dict[str, Tensor], num_heads: int):
        width = weights["layers.0.layer_norm1.weight"].shape[0]
        self.depth = len({name.split(".")[1] for name in weights})
        sizes = {"intermediate_size": weights["layers.0.mlp.fc1.weight"].shape[0], "num_hidden_layers": self.depth}
        config = SiglipConfig(
            hidden_size=width, num_attention_heads=num_heads, image_size=64, patch_size=8, layer_norm_eps=1e-6, **sizes
        )
        super().__init__(config)
        self.encoder = Encoder([EncoderLayer(config) for _ in range(self.depth)])
        self.encoder.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels, self.depth)

    def reset_parameters(self) -> None:
        """Nothing: the weights are the recorded ones."""


@dataclass(frozen=True)
class RecordedVision:
    """The file `d_w8a8_siglip.safetensors` of the recording `name`, and its metrics."""

    name: str
    tensors: dict[str, Tensor]
    metrics: dict[str, float]

    @cached_property
    def alpha(self) -> float:
        """Of the recorded smoothing, as the metrics name it."""
        (found,) = (
            match[1] for name in self.metrics if (match := re.fullmatch(r"rel_rmse_w8a8_emulated_alpha(.+)", name))
        )
        return float(found)

    @cached_property
    def fake_quantized(self) -> dict[float, float]:
        """By alpha, what the tower loses on `x` with the reference's rounding in float32."""
        found = {
            re.fullmatch(r"rel_rmse_fakequant_alpha_([\d.]+)", name): value for name, value in self.metrics.items()
        }
        return {float(match[1]): value for match, value in found.items() if match is not None}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return {
            name.removeprefix("weights."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("weights.")
        }

    @cached_property
    def tower(self) -> RecordedTower:
        """The tower with as many heads as give the recorded outputs: the file does not say how many."""
        width = self.weights["layers.0.layer_norm1.weight"].shape[0]
        for heads in (number for number in range(1, width + 1) if width % number == 0):
            tower = RecordedTower(self.weights, heads)
            if relative_error([tower(self.tensors["x"])], [self.tensors["y_fp32"]]) < 1e-5:
                return tower
        pytest.fail("with no number of heads the tower gives the recorded outputs")

    def scales(self, layer: int, part: str) -> Tensor:
        """Smoothing scales `[D]` of a part from the recorded maxima."""
        first = PARTS[part][0]
        maxima = self.tensors[f"act_scale.encoder.layers.{layer}.{first}"]
        return smoothing_scales(
            maxima, [self.weights[f"layers.{layer}.{name}.weight"] for name in PARTS[part]], self.alpha
        )


@pytest.fixture
def vision(recording: Recording) -> RecordedVision:
    return RecordedVision(
        recording.folder.name,
        recording.tensors("d_w8a8_*.safetensors"),
        json.loads(recording.path("d_metrics.json").read_text()),
    )


def test_recorded_smoothing(vision: RecordedVision) -> None:
    weights = vision.weights
    for norm, part in (("layer_norm1", "qkv"), ("layer_norm2", "fc1")):
        scales = vision.scales(0, part)
        for name in ("weight", "bias"):
            assert torch.equal(
                weights[f"layers.0.{norm}.{name}"] / scales, vision.tensors[f"smoothed.layers.0.{norm}.{name}"]
            )
        name = f"layers.0.{PARTS[part][0]}.weight"
        assert torch.equal(weights[name] * scales, vision.tensors[f"smoothed.{name}"])


def test_recorded_maxima_of_channels(vision: RecordedVision) -> None:
    tower, seen = vision.tower, {}

    def record(name: str):
        return lambda module, arguments: seen.update({name: channel_maxima([arguments[0]])})

    names = {name: module for name, module in tower.named_modules() if isinstance(module, nn.Linear)}
    handles = [module.register_forward_pre_hook(record(name)) for name, module in names.items()]
    tower(vision.tensors["calib_hidden"])
    for handle in handles:
        handle.remove()
    assert seen
    for name, maxima in seen.items():
        torch.testing.assert_close(
            maxima,
            vision.tensors[f"act_scale.{name}"],
            rtol=1e-5,
            atol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_recorded_weights(vision: RecordedVision) -> None:
    """Smoothed in float32, then quantized in float16: codes and scales are equal."""
    for layer in range(vision.tower.depth):
        for part, linears in PARTS.items():
            weight = torch.cat([vision.weights[f"layers.{layer}.{name}.weight"] for name in linears])
            if part in ("qkv", "fc1"):
                weight = weight * vision.scales(layer, part)
            codes, scale = quantize_rows(weight.half())
            assert torch.equal(codes, vision.tensors[f"L{layer}.{part}.weight_int8"]), (layer, part)
            assert torch.equal(scale.flatten(), vision.tensors[f"L{layer}.{part}.dequant_scale"]), (layer, part)


def test_recorded_product_is_exact(vision: RecordedVision) -> None:
    t = vision.tensors
    weight, scale, bias = (t[f"L0.qkv.{name}"] for name in ("weight_int8", "dequant_scale", "bias"))
    y = multiply_int8(t["lin.in_int8"], t["lin.in_scale"][:, None], weight, scale[:, None], bias)
    assert torch.equal(y.half(), t["lin.out_fp16"])


def test_recorded_linear(vision: RecordedVision) -> None:
    """From the norm's input to the product's output: codes differ by one where the norm's rounding decides, at most."""
    t = vision.tensors
    norm = [t[f"smoothed.layers.0.layer_norm1.{name}"].half().float() for name in ("weight", "bias")]
    x = F.layer_norm(t["lin.ln_in_fp16"].float(), norm[0].shape, *norm, eps=1e-6)
    codes, scale = quantize_rows(x)
    assert_codes_differ_on_ties(codes, x / scale, t["lin.in_int8"])
    linear = EightBitLinear("w8a8", *t["L0.qkv.weight_int8"].shape, bias=True)
    linear.weight, linear.weight_scale = t["L0.qkv.weight_int8"], t["L0.qkv.dequant_scale"][:, None]
    linear.bias = nn.Parameter(t["L0.qkv.bias"], requires_grad=False)
    linear.reset_buffers(torch.device("cpu"), torch.float16)
    assert relative_error([linear(x)], [t["lin.out_fp16"]]) < 1e-2


def test_recorded_activation_codes(vision: RecordedVision) -> None:
    t = vision.tensors
    x = F.gelu(t["gelu.in_fp16"].float(), approximate="tanh")
    codes, scale = quantize_rows(x)
    assert_codes_differ_on_ties(codes, x / scale, t["gelu.out_int8"])
    torch.testing.assert_close(scale.flatten(), t["gelu.scale"].float(), rtol=1e-3, atol=0.0)


def assert_codes_differ_on_ties(codes: Tensor, exact: Tensor, expected: Tensor) -> None:
    """Codes are equal but for at most 2 % that are one off, where the exact value is nearly half way between two."""
    difference = (codes.int() - expected.int()).abs()
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 0.02
    from_tie = (exact.abs() % 1 - 0.5).abs()
    assert bool((from_tie[difference > 0] < 0.125).all())  # two steps of float16 at 127


def test_recorded_tower(vision: RecordedVision) -> None:
    """Our scales, codes and products give the recorded outputs if rounding follows llm-awq's kernels.

    They run in float16 and quantize inside the norm and GELU. Our towers round by their dtype, so some codes are one
    step away (under 1 % of those after GELU), and the output differs by a third of what eight bits lose.
    """
    heads = vision.tower.config.num_attention_heads
    x = vision.tensors["x"].half()
    for number in range(vision.tower.depth):
        layer = LlmAwqLayer(vision, number)
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in layer.linear("qkv", *layer.norm("layer_norm1", "qkv", x)).float().chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).half()
        x = x + layer.linear("out", *layer.cut(attended, attended))
        activated = layer.gelu(layer.linear("fc1", *layer.norm("layer_norm2", "fc1", x)))
        x = x + layer.linear("fc2", *activated)
    assert relative_error([x], [vision.tensors["y_w8a8"]]) < 1e-2


@dataclass(frozen=True)
class LlmAwqLayer:
    """A layer with the roundings of llm-awq's kernels (`awq/kernels/csrc/w8a8`, `tinychat/…/fused_siglipdecoder.py`).

    What reads int8 takes codes `[N, P, K]` and scales `[N, P, 1]`; all else is float16.
    """

    vision: RecordedVision
    number: int

    def linear(self, part: str, codes: Tensor, scale: Tensor) -> Tensor:
        names = [f"layers.{self.number}.{name}" for name in PARTS[part]]
        weight, bias = (
            torch.cat([self.vision.weights[f"{name}.{key}"] for name in names]) for key in ("weight", "bias")
        )
        if part in ("qkv", "fc1"):
            weight = weight * self.vision.scales(self.number, part)
        y = multiply_int8(codes.flatten(0, 1), scale.flatten(0, 1), *quantize_rows(weight.half()), bias.half())
        return y.half().view(*codes.shape[:2], -1)

    def norm(self, name: str, part: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cut what the norm gives in float32 by its largest value in float16; the variance is E[x²] - E[x]²."""
        scales = self.vision.scales(self.number, part)
        gamma, beta = (
            (self.vision.weights[f"layers.{self.number}.{name}.{key}"] / scales).half() for key in ("weight", "bias")
        )
        x = x.float()
        mean = x.mean(-1, keepdim=True)
        variance = x.square().mean(-1, keepdim=True) - mean.square()
        y = (x - mean) * torch.rsqrt(variance + self.vision.tower.config.layer_norm_eps) * gamma + beta
        return self.cut(y, y.half())

    @staticmethod
    def cut(x: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply by 127 / max|of| in float32, where our own divide by the scale; the scale is rounded after that."""
        largest = of.float().abs().amax(-1, keepdim=True)
        return torch.round(x.float() * (127 / largest)).to(torch.int8), (largest / 127).half()

    @staticmethod
    def gelu(x: Tensor) -> tuple[Tensor, Tensor]:
        """Every step of the tanh form is rounded to float16, 127 / max|y| and its product too."""
        root, cubic, half, one = (
            torch.tensor(value, dtype=torch.float16) for value in (0.79788456, 0.044715, 0.5, 1.0)
        )
        y = half * x * (one + torch.tanh((x * root * (one + cubic * x * x)).float()).half())
        largest = y.float().abs().amax(-1, keepdim=True)
        return torch.round(y * (127 / largest).half()).to(torch.int8), (largest / 127).half()


def test_recorded_tower_loses_what_was_recorded(vision: RecordedVision) -> None:
    """Per alpha, as with the reference's weights and activations rounded in float32; closer in the first recording."""
    assert vision.fake_quantized
    is_first = vision.name == COMMITTED.name
    for alpha, expected in vision.fake_quantized.items():
        tolerance = {"rel": 0.02} if is_first else {"abs": 1e-2}
        assert tower_error(vision, alpha, vision.tensors["x"]) == pytest.approx(expected, **tolerance), alpha
    if is_first:
        emulated = vision.metrics[f"rel_rmse_w8a8_emulated_alpha{vision.alpha}"]
        assert tower_error(vision, vision.alpha, vision.tensors["x"]) == pytest.approx(emulated, rel=0.02)


def test_search_loses_no_more_than_the_best_recorded_alpha(vision: RecordedVision) -> None:
    """Over all recorded images: attention is nearly one-hot in random towers, so two images are not decisive."""
    images = torch.cat([vision.tensors["calib_hidden"], vision.tensors["x"]])
    best = min(tower_error(vision, alpha, images) for alpha in vision.fake_quantized)
    assert tower_error(vision, "search", images) <= 1.02 * best
    if vision.name == COMMITTED.name:
        recorded = min(value for name, value in vision.metrics.items() if name.startswith("rel_rmse"))
        assert tower_error(vision, "search", vision.tensors["x"]) <= 1.02 * recorded


def tower_error(vision: RecordedVision, alpha: float | str, images: Tensor) -> float:
    """Quantize the recorded tower on the recorded calibration; return what its output on `images` `[N, P, D]` loses."""
    tensors = quantize_tower(vision.tower, [vision.tensors["calib_hidden"]], "int8", alpha)
    return relative_error([with_tensors(vision.tower, tensors)(images)], [vision.tower(images)])


def with_tensors(tower: VisionTower, tensors: dict[str, Tensor]) -> VisionTower:
    """Return a copy of the tower with its linears replaced as a checkpoint's tensors say."""
    tower = copy.deepcopy(tower)
    quantized = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    for name in quantized:
        old, weight = tower.get_submodule(name), tensors[f"{name}.weight"]
        new = EightBitLinear("w8a8" if weight.dtype == torch.int8 else "fp8", *weight.shape, bias=True)
        new.weight, new.weight_scale, new.bias = weight, tensors[f"{name}.weight_scale"], old.bias
        new.reset_buffers(weight.device, torch.float32)
        tower.set_submodule(name, new)
    norms = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in quantized}
    tower.load_state_dict(norms, strict=False)
    return tower


def test_rows_are_cut_by_their_own_largest_value() -> None:
    codes, scale = quantize_rows(torch.tensor([[1.27, -0.635, 0.004], [0.0, 0.0, 0.0], [-254.0, 127.0, 3.0]]))
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 64, 2]]  # 63.5 and 1.5 go to the even neighbour
    torch.testing.assert_close(scale, torch.tensor([[0.01], [1e-5 / 127], [2.0]]))


def test_smoothing_scales() -> None:
    """s = max|x|^α / max|W|^(1 - α), over all linears that read the channel."""
    weights = [torch.tensor([[1.0, -2.0], [0.5, 1.0]]), torch.tensor([[-4.0, 0.0]])]
    scales = smoothing_scales(torch.tensor([16.0, 0.0]), weights, 0.5)
    assert scales.tolist() == pytest.approx([4.0 / 2.0, 1e-5])  # the second channel is always zero: the floor
    assert smoothing_scales(torch.tensor([16.0, 8.0]), weights, 0.0).tolist() == [0.25, 0.5]
    assert smoothing_scales(torch.tensor([16.0, 8.0]), weights, 1.0).tolist() == [16.0, 8.0]


@pytest.mark.parametrize(("rows", "columns", "outputs"), [(1, 7, 3), (5, 1024, 8), (3, 2500, 5), (0, 16, 8)])
def test_integer_products_are_exact(rows: int, columns: int, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (outputs, columns), dtype=torch.int8, generator=generator)
    x[:1], weight[:1] = 127, 127  # the largest sum there is
    expected = (x.long() @ weight.long().T).int()
    for has_instructions in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda answer=has_instructions: answer)
        assert torch.equal(integer_product(x, weight), expected), has_instructions


def test_bits_of_a_linear() -> None:
    """Each of a linear's eight-bit forms loses what its grid does: a step of max / 127, or three bits of mantissa."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 24).requires_grad_(False)
    x = torch.randn(2, 3, 64)
    assert relative_error([quantize_linear(linear, "int8")(x)], [linear(x)]) < 0.015
    assert relative_error([quantize_linear(linear, "fp8")(x)], [linear(x)]) < 0.05
    scales = torch.linspace(0.5, 2.0, 64)
    assert relative_error([quantize_linear(linear, "int8", scales)(x / scales)], [linear(x)]) < 0.02


def test_fp8_rows() -> None:
    codes, scale = quantize_rows_fp8(torch.tensor([[448.0, -1.0, 17.0], [0.0, 0.0, 0.0]]))
    assert codes.float().tolist() == [
        [448.0, -1.0, 16.0],
        [0.0, 0.0, 0.0],
    ]  # between 16 and 18: 17 goes to the even one
    assert scale[0].item() == 1.0


def small_tower(name: str) -> VisionTower:
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    towers = {
        "siglip": lambda: SiglipTower(SiglipConfig(**sizes)),
        "clip": lambda: ClipTower(ClipConfig(**sizes)),
        "intern_vit": lambda: InternVitTower(InternVitConfig(**sizes)),
        "radio": lambda: RadioTower(RadioConfig(**sizes, max_image_size=32)),
    }
    tower = towers[name]().eval().requires_grad_(False)
    for parameter in tower.parameters():
        parameter += 0.05 * torch.randn_like(parameter)  # norms of ones and biases of zero would hide what is left out
    return tower


@pytest.mark.parametrize("mode", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["siglip", "clip", "intern_vit", "radio"])
def test_every_tower(name: str, mode: str) -> None:
    tower = small_tower(name)
    pixels = torch.randn(3, 3, 16, 16)
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    losses: list[BranchLoss] = []
    tensors = quantize_tower(tower, pixels.split(2), mode, "search", losses.append)
    assert all(torch.equal(before[key], value) for key, value in tower.state_dict().items())
    run = tower.depth
    assert len(losses) == 2 * run
    linears = [key for key in tensors if key.endswith(".weight_scale")]
    assert len(linears) == run * (6 if name in ("siglip", "clip") else 4)
    weights = [tensors[key.removesuffix("_scale")] for key in linears]
    assert {weight.dtype for weight in weights} == {torch.int8 if mode == "int8" else torch.float8_e4m3fn}
    assert all(
        tensors[key].dtype == torch.float32 and tensors[key].shape == (len(weight), 1)
        for key, weight in zip(linears, weights, strict=True)
    )
    missing = set(tensors) - set(before) - set(linears)
    assert not missing
    assert relative_error([with_tensors(tower, tensors)(pixels)], [tower(pixels)]) < (0.02 if mode == "int8" else 0.06)


def test_layers_that_never_run_stay_whole() -> None:
    tower = small_tower("siglip")
    assert tower.depth == 2
    tensors = quantize_tower(tower, [torch.randn(1, 3, 16, 16)], "int8", 0.5)
    assert {int(key.split("layers.")[1][0]) for key in tensors} == {0, 1}


def test_search_takes_no_smoothing_where_that_is_best() -> None:
    """Channels that are alike but for one that the weights ignore: moving anything to the weights only costs."""
    losses: list[BranchLoss] = []
    tower = small_tower("siglip")
    fixed: dict[float, list[float]] = {}
    pixels = [torch.randn(2, 3, 16, 16)]
    quantize_tower(tower, pixels, "int8", "search", losses.append)
    for alpha in (0.15, 0.5, 0.85):
        of_alpha: list[BranchLoss] = []
        quantize_tower(tower, pixels, "int8", alpha, of_alpha.append)
        fixed[alpha] = [loss.error for loss in of_alpha]
    for index, loss in enumerate(losses):
        assert loss.error <= min(errors[index] for errors in fixed.values())


def test_what_is_refused() -> None:
    tower = small_tower("siglip")
    with pytest.raises(ConfigError, match=r"alpha is 1\.5"):
        quantize_tower(tower, [torch.zeros(1, 3, 16, 16)], "int8", 1.5)
    with pytest.raises(QuantizationError, match="no images"):
        quantize_tower(tower, [])
    tower.get_parameter("vision_model.encoder.layers.1.mlp.fc2.weight")[0, 0] = float("inf")
    with pytest.raises(QuantizationError, match=r"encoder\.layers\.1\.mlp: .* not finite"):
        quantize_tower(tower, [torch.randn(1, 3, 16, 16)])


def test_a_tower_of_other_layers_is_refused() -> None:
    class OtherTower(VisionTower):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels

        def reset_parameters(self) -> None:
            """It has none."""

    with pytest.raises(ConfigError, match=r"OtherTower\) cannot be quantized: .*EncoderLayer.*--vision none"):
        quantize_tower(
            OtherTower(
                SiglipConfig(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    image_size=16,
                    patch_size=8,
                )
            ),
            [],
        )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize(("rows", "columns", "outputs"), [(1, 64, 24), (16, 20, 7), (729, 1152, 4304)])
def test_integer_products_on_a_gpu(rows: int, columns: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (outputs, columns), dtype=torch.int8, generator=generator)
    expected = x.double() @ weight.double().T
    assert torch.equal(integer_product(x.cuda(), weight.cuda()).cpu().double(), expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("rows", [1, 17, 729])
@pytest.mark.parametrize("has_bias", [True, False])
def test_fp8_products_on_a_gpu(rows: int, has_bias: bool) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not multiply fp8")
    generator = torch.Generator().manual_seed(0)
    x, x_scale = quantize_rows_fp8(torch.randn(rows, 1152, generator=generator).cuda())
    weight, weight_scale = quantize_rows_fp8(torch.randn(4304, 1152, generator=generator).cuda())
    bias = torch.randn(4304, generator=generator).cuda().bfloat16() if has_bias else None
    expected = multiply_fp8_reference(x, x_scale, weight, weight_scale, bias)
    assert relative_error([multiply_fp8(x, x_scale, weight, weight_scale, bias)], [expected]) < 4e-3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("mode", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linears_on_a_gpu(mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(192, 768).requires_grad_(False).to(dtype)
    x = torch.randn(2, 45, 192, dtype=dtype)
    expected = quantize_linear(linear, mode)(x)
    assert relative_error([quantize_linear(linear.cuda(), mode)(x.cuda()).cpu()], [expected]) < 1e-2
