"""Bring weights into the L2 cache before the kernel that reads them starts."""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

import triton
import triton.language as tl


@triton.jit
def prefetch_into_l2(pointer, bytes, chosen, INLINE: tl.constexpr):
    """Ask for `bytes` (a multiple of 16) at `pointer` to be brought into L2; each `chosen` thread does (from sm90).

    `pointer` and `chosen` are tensors with one element for each thread. Without `INLINE`, for older GPUs and the
    interpreter, nothing happens.
    """
    if INLINE:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
            "=&r,l,r",
            [pointer, tl.where(chosen, bytes, 0)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
