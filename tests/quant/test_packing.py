"""Int4 weights in files: bit for bit equal to the reference, and small words by hand."""

from collections.abc import Iterator

import pytest
import torch
from tests.quant.conftest import Recording
from torch import Tensor

from vila_core.errors import CheckpointError, ConfigError
from vila_quant.packing.autoawq import GemmTensors, pack_gemm, unpack_gemm
from vila_quant.packing.groupwise import GroupwiseWeight, fake_quantize, quantize
from vila_quant.packing.tinychat import TinyChatTensors, pack_tinychat, unpack_tinychat


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same to the bit: 0.0 is not -0.0."""
    return (
        actual.dtype == expected.dtype
        and actual.shape == expected.shape
        and torch.equal(actual.flatten().clone().view(torch.uint8), expected.flatten().clone().view(torch.uint8))
    )


def random_weight(rows: int, columns: int, group_size: int, seed: int = 0) -> GroupwiseWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = columns // group_size
    return GroupwiseWeight(
        q=torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8),
        scales=(torch.rand(rows, groups, generator=generator) * 0.1 + 1e-3).half(),
        zeros=torch.randint(0, 16, (rows, groups), generator=generator).half(),
        bits=4,
    )


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_integers_scales_and_zeros_are_the_recorded_ones(recording: Recording, dtype: str) -> None:
    recorded = recording.tensors("a_fake_quant.safetensors")
    weight = recorded[f"{dtype}.w"]
    quantized = quantize(weight, 4, weight.shape[1] // recorded[f"{dtype}.scales"].shape[1])
    assert torch.equal(quantized.q, recorded[f"{dtype}.q"].to(torch.uint8))
    assert same_bits(quantized.scales, recorded[f"{dtype}.scales"])
    assert torch.equal(quantized.zeros, recorded[f"{dtype}.zeros"])
    assert torch.equal(quantized.dequantize(), recorded[f"{dtype}.w_dq"])


def test_three_bits_and_one_group_a_row_are_the_recorded_ones(recording: Recording) -> None:
    recorded = recording.tensors("a_fake_quant.safetensors")
    weight = recorded["fp32.w"]
    group_size = weight.shape[1] // recorded["w3.scales"].shape[1] if "w3.scales" in recorded else 128
    assert torch.equal(fake_quantize(weight, 3, group_size), recorded["w3.w_dq"])
    assert torch.equal(fake_quantize(weight, 4, -1), recorded["g-1.w_dq"])


def recorded_layers(recording: Recording) -> Iterator[tuple[str, GroupwiseWeight, dict[str, Tensor]]]:
    """Yield each recorded layer's name, our quantization of its weight, and what was recorded of it by TinyChat."""
    recorded = recording.tensors("c_packed_tinychat.safetensors")
    names = sorted(key.removesuffix(".int4_nk") for key in recorded if key.endswith(".int4_nk"))
    assert names
    for name in names:
        layer = {key.removeprefix(f"{name}."): tensor for key, tensor in recorded.items() if key.startswith(f"{name}.")}
        weight = layer["weight_fp16_after_awq"]
        yield name, quantize(weight, 4, weight.shape[1] // layer["scales_ng"].shape[1]), layer


def test_tinychat_files_are_packed_bit_for_bit(recording: Recording) -> None:
    for name, weight, layer in recorded_layers(recording):
        assert torch.equal(weight.q, layer["int4_nk"]), name
        packed = pack_tinychat(weight)
        for kind in ("qweight", "scales", "scaled_zeros"):
            assert same_bits(vars(packed)[kind], layer[f"tinychat_v2.{kind}"]), (name, kind)
        unpacked = unpack_tinychat(packed)
        assert torch.equal(unpacked.q, weight.q), name
        assert torch.equal(unpacked.zeros, layer["zeros_ng"]), name
        assert same_bits(unpacked.scales, layer["scales_ng"]), name


def test_autoawq_files_are_packed_bit_for_bit(recording: Recording) -> None:
    recorded = recording.tensors("c_packed_autoawq.safetensors")
    for name, weight, _ in recorded_layers(recording):
        packed = pack_gemm(weight)
        for kind in ("qweight", "qzeros", "scales"):
            assert same_bits(vars(packed)[kind], recorded[f"{name}.autoawq_gemm.{kind}"]), (name, kind)
        dequantized = unpack_gemm(packed).dequantize()
        (columns,) = (tensor for key, tensor in recorded.items() if key.startswith(f"{name}.autoawq_gemm.dequant"))
        assert torch.equal(dequantized[: columns.shape[1]].T, columns), name


def test_dequantized_weights_and_products_are_the_recorded_ones(recording: Recording) -> None:
    for name, weight, layer in recorded_layers(recording):
        (rows,) = (tensor for key, tensor in layer.items() if key.startswith("tinychat_v2.dequant"))
        # fp16 (q - z) s against q s + fp16(-s z)
        assert (weight.dequantize()[: len(rows)].float() - rows).abs().max() <= 4e-4, name
        y = layer["x"].float() @ weight.dequantize().float().T
        y = y + layer["bias"].float() if "bias" in layer else y
        assert (y - layer["y_f32"]).norm() <= 1e-3 * layer["y_f32"].norm(), name


def test_a_gemm_word_holds_even_outputs_first() -> None:
    low, high = torch.arange(8, dtype=torch.uint8), torch.arange(8, 16, dtype=torch.uint8)
    weight = GroupwiseWeight(torch.stack([low, high], dim=1), torch.full((8, 1), 0.5).half(), low[:, None].half(), 4)
    packed = pack_gemm(weight)
    assert [word & 0xFFFFFFFF for word in packed.qweight.flatten().tolist()] == [0x75316420, 0xFDB9ECA8]
    assert packed.qzeros.tolist() == [[0x75316420]]
    assert packed.scales.tolist() == [[0.5] * 8]


def test_a_tinychat_word_interleaves_four_outputs() -> None:
    # Output r holds the number r everywhere but in its first 32 inputs, which count up.
    q = torch.arange(4, dtype=torch.uint8)[:, None].repeat(1, 128)
    q[0, :16] = torch.arange(16, dtype=torch.uint8)
    packed = pack_tinychat(GroupwiseWeight(q, torch.full((4, 1), 0.25).half(), torch.full((4, 1), 3.0).half(), 4))
    words = [word & 0xFFFF for word in packed.qweight[0].tolist()]
    # The first eight words are 32 inputs of output 0: of each eight (0 1 8 9 16 17 24 25), even, then odd positions.
    assert words[:8] == [0x0080, 0x0091, 0x00A2, 0x00B3, 0x00C4, 0x00D5, 0x00E6, 0x00F7]
    assert words[16:32] == [0x1111] * 16
    assert words[48:64] == [0x3333] * 16
    assert packed.scales.shape == packed.scaled_zeros.shape == (8, 4)
    assert packed.scales.tolist() == [[0.25] * 4] + [[0.0] * 4] * 7
    assert packed.scaled_zeros[0].tolist() == [-0.75] * 4


@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(8, 32, 32), (24, 96, 48), (40, 640, 128), (8, 7, 1), (16, 130, 130)]
)
def test_gemm_keeps_every_integer(rows: int, columns: int, group_size: int) -> None:
    weight = random_weight(rows, columns, group_size)
    packed = pack_gemm(weight)
    assert packed.qweight.shape == (columns, rows // 8)
    assert packed.qzeros.shape == (columns // group_size, rows // 8)
    unpacked = unpack_gemm(packed)
    assert torch.equal(unpacked.q, weight.q)
    assert torch.equal(unpacked.zeros, weight.zeros)
    assert same_bits(unpacked.scales, weight.scales)


@pytest.mark.parametrize(("rows", "columns"), [(4, 128), (20, 384), (8, 1152)])
def test_tinychat_keeps_every_integer(rows: int, columns: int) -> None:
    weight = random_weight(rows, columns, 128)
    packed = pack_tinychat(weight)
    assert packed.qweight.shape == (rows // 4, columns)
    assert packed.scales.shape == (16 if columns == 1152 else 8, rows)
    unpacked = unpack_tinychat(packed)
    assert torch.equal(unpacked.q, weight.q)
    assert torch.equal(unpacked.zeros, weight.zeros)
    assert same_bits(unpacked.scales, weight.scales)


@pytest.mark.parametrize(
    ("rows", "columns", "group_size", "bits", "message"),
    [
        (12, 128, 128, 4, "multiple of 8 outputs; got 4 bits and 12 outputs"),
        (8, 128, 128, 3, "got 3 bits"),
    ],
)
def test_gemm_refuses_what_it_cannot_hold(rows: int, columns: int, group_size: int, bits: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pack_gemm(quantize(torch.randn(rows, columns), bits, group_size))


@pytest.mark.parametrize(
    ("rows", "columns", "group_size", "bits", "message"),
    [
        (6, 128, 128, 4, "multiple of 4 outputs; got 4 bits, groups of 128, 6 outputs"),
        (8, 128, 64, 4, "groups of 64"),
        (8, 256, 256, 4, "groups of 256"),
        (8, 128, 128, 3, "got 3 bits"),
    ],
)
def test_tinychat_refuses_what_it_cannot_hold(
    rows: int, columns: int, group_size: int, bits: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pack_tinychat(quantize(torch.randn(rows, columns), bits, group_size))


def test_tinychat_refuses_scales_that_lose_the_zeros() -> None:
    weight = random_weight(8, 128, 128)
    weight.scales[3] = 0.0
    weight.zeros[3] = 7.0
    with pytest.raises(ConfigError, match="zeros cannot be recovered"):
        pack_tinychat(weight)


def test_tensors_that_do_not_fit_together_are_named() -> None:
    gemm = pack_gemm(random_weight(16, 64, 32))
    with pytest.raises(CheckpointError, match=r"qweight \[64, 2\], qzeros \[1, 2\]"):
        unpack_gemm(GemmTensors(gemm.qweight, gemm.qzeros[:1], gemm.scales))
    tinychat = pack_tinychat(random_weight(16, 256, 128))
    with pytest.raises(CheckpointError, match=r"scaled_zeros \[2, 16\]"):
        unpack_tinychat(TinyChatTensors(tinychat.qweight, tinychat.scales, tinychat.scaled_zeros[:2]))


@pytest.mark.parametrize("value", [float("nan"), 0.01, -1.0])
def test_zeros_that_are_not_whole_are_refused(value: float) -> None:
    tinychat = pack_tinychat(random_weight(16, 256, 128))
    tinychat.scaled_zeros[1, 3] = value
    with pytest.raises(CheckpointError, match="integer zeros from 0 to 15"):
        unpack_tinychat(tinychat)
