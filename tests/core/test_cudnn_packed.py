"""Attention by cuDNN: on a CPU, a fake computes it from what is declared to cuDNN; on a GPU, cuDNN itself does."""

import importlib
import sys
import warnings
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from tests.core import fake_cudnn

from vila_core.errors import VilaWarning
from vila_core.language import cudnn_packed
from vila_core.language.attention import attend_packed
from vila_core.language.packed import PackedSequences

LENGTHS = (3, 1, 20, 9)
CPU = torch.device("cpu")


@pytest.fixture
def with_fake(monkeypatch: pytest.MonkeyPatch):
    """Let packed rows on the CPU take cuDNN's path."""
    monkeypatch.setitem(sys.modules, "cudnn", fake_cudnn)
    monkeypatch.setattr(cudnn_packed, "_is_worth_it", lambda q: True)
    monkeypatch.setattr(cudnn_packed, "_handle", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    cudnn_packed._plan.cache_clear()
    yield
    cudnn_packed._plan.cache_clear()


def rows(lengths: tuple[int, ...], heads: int, kv_heads: int, *, joint: bool) -> list[torch.Tensor]:
    """Return q, k and v `[T, H, 8]`: columns of one tensor, or with the tokens of a head side by side."""
    tokens, counts = sum(lengths), (heads, kv_heads, kv_heads)
    torch.manual_seed(0)
    if joint:
        columns = torch.randn(tokens, 8 * sum(counts)).split([8 * count for count in counts], dim=1)
        return [x.unflatten(1, (-1, 8)).requires_grad_() for x in columns]
    return [torch.randn(count, tokens, 8).transpose(0, 1).requires_grad_() for count in counts]


def attended_one_by_one(inputs: list[torch.Tensor], packed: PackedSequences) -> torch.Tensor:
    return attend_packed(*(x.transpose(0, 1)[None] for x in inputs), packed, None)[0].transpose(0, 1)


@pytest.mark.usefixtures("with_fake")
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cudnn_is_told_where_everything_lies(joint: bool, kv_heads: int):
    inputs = rows(LENGTHS, 4, kv_heads, joint=joint)
    packed = PackedSequences.of(LENGTHS, CPU)
    expected = attended_one_by_one(inputs, packed)
    out = cudnn_packed.attend(*inputs, packed)
    assert out is not None
    torch.testing.assert_close(out, expected)
    weights = torch.randn(out.shape)
    found = torch.autograd.grad((out * weights).sum(), inputs)
    for one, other in zip(found, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("with_fake")
def test_rows_of_other_lengths_share_a_plan():
    for lengths in ((3, 4), LENGTHS, (1,) * 16, (100, 900)):
        inputs = rows(lengths, 4, 2, joint=False)
        packed = PackedSequences.of(lengths, CPU)
        out = cudnn_packed.attend(*inputs, packed)
        torch.testing.assert_close(out, attended_one_by_one(inputs, packed))
    assert cudnn_packed._plan.cache_info().misses == 1
    cudnn_packed.attend(*rows((2,) * 17, 4, 2, joint=False), PackedSequences.of((2,) * 17, CPU))
    cudnn_packed.attend(*rows((1025,), 4, 2, joint=False), PackedSequences.of((1025,), CPU))
    assert cudnn_packed._plan.cache_info().misses == 3


@pytest.mark.usefixtures("with_fake")
def test_without_a_plan_flash_attention_does_it(monkeypatch: pytest.MonkeyPatch):
    def refuse(graph: fake_cudnn.pygraph) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(fake_cudnn.pygraph, "check_support", refuse)
    inputs, packed = rows(LENGTHS, 4, 2, joint=True), PackedSequences.of(LENGTHS, CPU)
    with pytest.warns(VilaWarning, match="flash attention, since cuDNN has no plan for them: no kernel"):
        assert cudnn_packed.attend(*inputs, packed) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it says so once
        assert cudnn_packed.attend(*inputs, packed) is None


@pytest.mark.usefixtures("with_fake")
def test_rows_too_large_for_32_bits_are_not_taken(monkeypatch: pytest.MonkeyPatch):
    inputs, packed = rows(LENGTHS, 4, 2, joint=True), PackedSequences.of(LENGTHS, CPU)
    monkeypatch.setattr(cudnn_packed, "MAX_OFFSET", 33 * 32)
    assert cudnn_packed.attend(*inputs, packed) is not None
    monkeypatch.setattr(cudnn_packed, "MAX_OFFSET", 33 * 32 - 1)
    assert cudnn_packed.attend(*inputs, packed) is None


def test_a_cpu_does_without():
    inputs, packed = rows(LENGTHS, 4, 2, joint=True), PackedSequences.of(LENGTHS, CPU)
    assert cudnn_packed.attend(*inputs, packed) is None
    assert "cudnn" not in sys.modules or find_spec("cudnn") is not None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("lengths", [(300, 1, 77, 1000), (5,) * 40, (3000,)])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(4, 128), (2, 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cudnn_equals_flash_attention(
    lengths: tuple[int, ...], kv_heads: int, head_dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    if not cudnn_packed.is_installed() or torch.cuda.get_device_capability() != cudnn_packed.CAPABILITY:
        pytest.skip("needs cudnn-frontend and a Hopper GPU")
    importlib.import_module("cudnn")
    torch.manual_seed(0)
    packed = PackedSequences.of(lengths, torch.device("cuda", torch.cuda.current_device()))
    counts = [head_dim * count for count in (8, kv_heads, kv_heads)]
    joint = torch.randn(sum(lengths), sum(counts), device="cuda", dtype=dtype)
    inputs = [x.unflatten(1, (-1, head_dim)).requires_grad_() for x in joint.split(counts, dim=1)]
    out = cudnn_packed.attend(*inputs, packed)
    assert out is not None
    monkeypatch.setattr(cudnn_packed, "_is_worth_it", lambda q: False)
    expected = attended_one_by_one(inputs, packed)
    weights = torch.randn_like(out)
    found = torch.autograd.grad((out * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip((out, *found), (expected, *wanted), strict=True):
        assert (one - other).float().norm() / other.float().norm() < 0.01
