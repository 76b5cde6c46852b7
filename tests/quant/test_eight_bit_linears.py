"""Eight-bit linears: joined ones, layers of a fused tower, and the kernel that runs where Triton is missing.

M rows, N outputs, K inputs
"""

from typing import Any

import pytest
import torch
from tests.interpreted_kernels import run_interpreted
from torch import nn

from vila_quant.kernels import LinearShape, choose_eight_bit
from vila_quant.kernels.kernel import Scheme
from vila_quant.kernels.registry import _warn_once
from vila_quant.quantizing.smoothing import quantize_linear


@pytest.mark.parametrize("scheme", ["w8a8", "fp8"])
def test_without_triton_a_warning_names_both_kernels(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    from vila_core.plugins import lazy

    def import_object(target: str) -> Any:
        if ".cuda." in target:
            raise ImportError("No module named 'triton'", name="triton")
        return lazy.import_object(target)

    monkeypatch.setattr("vila_quant.kernels.builtin.import_object", import_object)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    _warn_once.cache_clear()
    expected = f"Kernel '{scheme}-torch' runs instead of the faster '{scheme}-triton': .*pip install 'triton'"
    with pytest.warns(UserWarning, match=expected):
        kernel = choose_eight_bit(LinearShape.eight_bit(scheme, 64, 128), torch.device("cuda"), torch.bfloat16)
    assert kernel.name == f"{scheme}-torch"
    assert kernel.row_kernel is None


@pytest.mark.parametrize("mode", ["int8", "fp8"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_joined_linear_equals_its_parts_and_shares_their_memory(mode: Any, bias: bool) -> None:
    torch.manual_seed(0)
    parts = [quantize_linear(nn.Linear(64, outputs, bias=bias), mode) for outputs in (32, 16, 48)]
    x = torch.randn(5, 64)
    expected = torch.cat([part(x) for part in parts], -1)
    saved = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    whole = parts[0].joined(parts[1:])
    assert whole is not None
    torch.testing.assert_close(whole(x), expected)
    assert parts[1].weight.untyped_storage().data_ptr() == whole.weight.untyped_storage().data_ptr()
    for part, before in zip(parts, saved, strict=True):
        after = part.state_dict()
        assert all(torch.equal(after[name].float(), before[name].float()) for name in before)
    assert parts[0].joined([nn.Linear(64, 8)]) is None
    assert parts[0].joined([quantize_linear(nn.Linear(32, 16, bias=bias), mode)]) is None
    assert parts[0].row_format is None, "on a CPU the kernel quantizes for itself"


FUSED = """
import torch
from torch import nn
from vila_core.config import SiglipConfig
from vila_core.ops.row_settings import RowFormat
from vila_core.towers.fused import FusedTower
from vila_core.towers.fused_layers import EightBitLayer
from vila_core.towers.siglip import SiglipTower
from vila_quant.kernels.cuda.w8a8 import W8A8TritonKernel
from vila_quant.quantizing.smoothing import BRANCHES, quantize_linear

torch.manual_seed(0)
config = SiglipConfig(image_size=28, patch_size=7, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
                      num_attention_heads=2, select_layer=-1, select_feature="cls_patch")
tower = SiglipTower(config).eval().requires_grad_(False)

class Interpreted:
    name, row_kernel = "w8a8-triton", W8A8TritonKernel()
    def multiply(self, *arguments):
        return self.row_kernel.multiply(*arguments)

for layer in tower.vision_model.encoder.layers:
    for branch in BRANCHES[type(layer)]:
        module = layer.get_submodule(branch.name)
        for name in (*branch.smoothed, *branch.others):
            linear = module.get_submodule(name)
            nn.init.normal_(linear.bias, std=0.3)
            quantized = quantize_linear(linear, "int8")
            quantized.kernel = Interpreted()
            module.set_submodule(name, quantized)
pixels = torch.randn(2, 3, 28, 28)
with torch.no_grad():
    expected = tower(pixels)
    fused = FusedTower(tower)
    assert all(isinstance(layer, EightBitLayer) for layer in fused._layers)
    error = ((fused(pixels) - expected).norm() / expected.norm()).item()
    again = ((tower(pixels) - expected).norm() / expected.norm()).item()
assert error < 0.01 and again == 0, (error, again)
tower.vision_model.encoder.layers[1].mlp.fc2 = nn.Linear(96, 48)
with torch.no_grad():
    expected = tower(pixels)
    mixed = FusedTower(tower)
    assert not isinstance(mixed._layers[1], EightBitLayer)
    error = ((mixed(pixels) - expected).norm() / expected.norm()).item()
assert error < 0.01, error
"""


def test_a_tower_with_eight_bit_linears_runs_fused() -> None:
    run_interpreted(FUSED)
