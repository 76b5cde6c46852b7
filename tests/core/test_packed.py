"""Packed rows: several sequences in one row give what each of them gives alone, gradients included."""

import pytest
import torch

from vila_core.config import DecoderConfig, RopeScaling
from vila_core.language.decoder import Decoder
from vila_core.language.packed import PackedSequences

LENGTHS = (5, 1, 17, 2, 9)


def make_decoder(**changes: object) -> Decoder:
    config = DecoderConfig(
        hidden_size=32, vocab_size=50, max_length=64, architecture="qwen2", intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    ).model_copy(update=changes)  # fmt: skip
    decoder = Decoder(config)
    decoder.reset_parameters(0.2, torch.Generator().manual_seed(0))
    return decoder.double()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4},
        {"sliding_window": 3},
        {"qk_norm": True},
        {"rope_scaling": RopeScaling(rope_type="dynamic", factor=4.0), "max_position_embeddings": 8},
        {"rope_scaling": RopeScaling(rope_type="linear", factor=2.0)},
    ],
    ids=["plain", "no groups", "window", "qk norm", "dynamic rope", "linear rope"],
)
def test_a_packed_row_equals_its_sequences_alone(changes: dict[str, object]):
    decoder = make_decoder(**changes)
    embeds = torch.randn(1, sum(LENGTHS), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together, alone = embeds.clone().requires_grad_(), embeds.clone().requires_grad_()
    packed = decoder(together, packed=PackedSequences.of(LENGTHS, torch.device("cpu")))
    separate = torch.cat([decoder(one) for one in alone.split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(packed, separate, rtol=1e-12, atol=1e-12)
    weights = torch.randn(packed.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = [*decoder.model.layers.parameters(), *decoder.model.norm.parameters()]
    of_packed = torch.autograd.grad((packed * weights).sum(), [together, *parameters])
    of_separate = torch.autograd.grad((separate * weights).sum(), [alone, *parameters])
    for one, other in zip(of_packed, of_separate, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_no_sequence_sees_another():
    decoder = make_decoder()
    embeds = torch.randn(1, sum(LENGTHS), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    packed = PackedSequences.of(LENGTHS, torch.device("cpu"))
    before = decoder(embeds, packed=packed)
    embeds[:, :6] += 1  # the first two sequences
    after = decoder(embeds, packed=packed)
    assert torch.equal(before[:, 6:], after[:, 6:])
    assert not torch.equal(before[:, :6], after[:, :6])


def test_positions_restart():
    packed = PackedSequences.of((3, 1, 2), torch.device("cpu"))
    assert packed.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert packed.bounds.tolist() == [0, 3, 4, 6]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_one_kernel_attends_to_all_sequences_on_a_gpu(window: int | None, kv_heads: int):
    decoder = make_decoder(sliding_window=window, num_key_value_heads=kv_heads, head_dim=64)
    decoder = decoder.to("cuda", torch.bfloat16)
    lengths = (300, 1, 77, 1000)
    generator = torch.Generator("cuda").manual_seed(0)
    embeds = torch.randn(1, sum(lengths), 32, device="cuda", dtype=torch.bfloat16, generator=generator)
    together, alone = embeds.clone().requires_grad_(), embeds.clone().requires_grad_()
    packed = decoder(together, packed=PackedSequences.of(lengths, embeds.device))
    separate = torch.cat([decoder(one) for one in alone.split(lengths, dim=1)], dim=1)
    assert (packed - separate).float().norm() / separate.float().norm() < 0.02
    # Random weights, since the sum of squares after a norm is constant.
    weights = torch.randn(packed.shape, device="cuda", generator=generator)
    (one,) = torch.autograd.grad((packed.float() * weights).sum(), together)
    (other,) = torch.autograd.grad((separate.float() * weights).sum(), alone)
    assert (one - other).float().norm() / other.float().norm() < 0.05
