"""Root-mean-square norm of a sum whose parts lie on several GPUs (reference: `reference.add_rms_norm` of the sum).

B rows, D width, W GPUs

    h = residual + x_0 + … + x_(W-1),    y = round(h / sqrt(mean(h²) + eps)) · weight

Every GPU writes its part into the inboxes of the others, raises a flag there, and waits for theirs. All add the parts
in the same order, so their results are equal to the bit. Grid: (B,) on each GPU; row by row, GPUs must make the same
calls in the same order, from CUDA graphs that were compiled before: while a kernel waits, nothing may be compiled or
allocated.

**How often a row was exchanged** counts on its flags. Inboxes alternate: a GPU writes into the inbox of call n again in
call n + 2, and by then the others have ended call n, since it has got their parts of call n + 1.

**A GPU that does not come.** After `PATIENCE` looks at a flag a row gives up: its result is NaN, and so is everything
that follows, at once.
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.errors import GenerationError
from vila_core.ops.norm import normalized
from vila_core.ops.support import launches_early

PATIENCE = 5_000_000
"""Looks at a flag, each about a microsecond. A GPU comes late if the host is held up between two launches."""
WARPS = 8


@triton.jit
def exchange_kernel(
    x_pointer, residual_pointer, weight_pointer, y_pointer, h_pointer, positions_pointer,
    inboxes_pointer, flags_pointer, counts_pointer, failed_pointer, most_rows, width, x_stride, eps, patience,
    RANK: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module; one block per row. `inboxes` and `flags` are the addresses of all GPUs' buffers."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    weight = tl.load(weight_pointer + column, mask=mask, other=0.0).to(tl.float32)
    number = tl.load(counts_pointer + row) + 1
    is_used = tl.load(positions_pointer + row) >= 0
    failed = tl.load(failed_pointer)
    dtype = x_pointer.dtype.element_ty
    place = (number & 1) * WORLD  # of this call's inboxes, each `[most_rows, width]`
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(x_pointer + row * x_stride + column, mask=mask, other=0.0)
    residual = tl.load(residual_pointer + row * width + column, mask=mask, other=0.0)
    if is_used:
        for other in tl.static_range(WORLD):
            if other != RANK:
                inbox = tl.multiple_of(tl.load(inboxes_pointer + other).to(tl.pointer_type(dtype)), 16)
                tl.store(inbox + ((place + RANK) * most_rows + row) * width + column, x, mask=mask)
        tl.debug_barrier()  # the flags follow all threads' stores
        for other in tl.static_range(WORLD):
            if other != RANK:
                flags = tl.load(flags_pointer + other).to(tl.pointer_type(tl.int32))
                tl.atomic_xchg(flags + RANK * most_rows + row, number, sem="release", scope="sys")
        for other in tl.static_range(WORLD):
            if other != RANK:
                flag = tl.load(flags_pointer + RANK).to(tl.pointer_type(tl.int32)) + other * most_rows + row
                ahead = tl.atomic_add(flag, 0, sem="acquire", scope="sys") - number
                looks = tl.where(failed == 0, 0, patience)
                while (ahead < 0) & (looks < patience):
                    ahead = tl.atomic_add(flag, 0, sem="acquire", scope="sys") - number
                    looks += 1
                if ahead < 0:
                    failed = 1
        tl.debug_barrier()
        tl.store(counts_pointer + row, number)
    h = residual.to(tl.float32)
    own = tl.multiple_of(tl.load(inboxes_pointer + RANK).to(tl.pointer_type(dtype)), 16)
    for source in tl.static_range(WORLD):
        if source == RANK:
            h += x.to(tl.float32)
        else:
            part = own + ((place + source) * most_rows + row) * width + column
            h += tl.load(part, mask=mask, other=0.0, volatile=True).to(tl.float32)
    if failed != 0:
        tl.store(failed_pointer, 1)
        h += float("nan")
    h = h.to(dtype)
    tl.store(h_pointer + row * width + column, h, mask=mask)
    tl.store(y_pointer + row * width + column, normalized(h.to(tl.float32), weight, width, eps, dtype), mask=mask)


@dataclass(frozen=True)
class Peer:
    """One GPU's end of the exchange.

    Attributes:
        rank: its place among the GPUs.
        inbox: `[2, W, rows, D]`, of which GPU r writes `[:, r]`.
        flags: int32 `[W, rows]`, of which GPU r raises `[r]`.
        inboxes, flag_addresses: int64 `[W]`: where those of all GPUs are.
        counts: int32 `[rows]`: how often each row was exchanged.
        failed: int32 `[1]`: 1 once a GPU has not come.
    """

    rank: int
    inbox: Tensor
    flags: Tensor
    inboxes: Tensor
    flag_addresses: Tensor
    counts: Tensor
    failed: Tensor

    def __call__(
        self, change: Tensor, total: Tensor | None, weight: Tensor, eps: float, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the norm of `total` and all GPUs' `change` `[B, D]`, times `weight`, and their sum.

        Rows whose `positions`, int64 `[B]`, are negative are not exchanged, and their results mean nothing.
        """
        assert total is not None
        assert change.stride(1) == 1
        assert total.is_contiguous()
        rows, width = change.shape
        y, h = torch.empty_like(total), torch.empty_like(total)
        pdl = launches_early(change.device)
        exchange_kernel[(rows,)](
            change, total, weight, y, h, positions, self.inboxes, self.flag_addresses, self.counts, self.failed,
            self.inbox.shape[2], width, change.stride(0), eps, PATIENCE, RANK=self.rank, WORLD=len(self.flags),
            BLOCK=triton.next_power_of_2(width), PDL=pdl, num_warps=WARPS, **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
        return y, h


def require_meeting(peers: Sequence[Peer]) -> None:
    """Raise `GenerationError` if a GPU has waited in vain. The exchange is then of no use any more."""
    waited = [str(peer.failed.device) for peer in peers if peer.failed.item()]
    if waited:
        raise GenerationError(
            f"{' and '.join(waited)} waited in vain for the results of the other GPUs. Ask again. If that does not "
            "help, split the model by layers: device_map='auto'."
        )


@torch.inference_mode(False)
def new_peers(devices: Sequence[torch.device], most_rows: int, width: int, dtype: torch.dtype) -> list[Peer]:
    """Return the ends of an exchange of up to `most_rows` rows between GPUs that can write each other's memory."""
    count = len(devices)
    inboxes = [torch.zeros(2, count, most_rows, width, dtype=dtype, device=device) for device in devices]
    flags = [torch.zeros(count, most_rows, dtype=torch.int32, device=device) for device in devices]
    for inbox in inboxes:
        for other in inboxes:
            other[0, 0, 0, :1].copy_(inbox[0, 0, 0, :1])  # PyTorch opens the way between two GPUs with the first copy
    addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in (inboxes, flags)]
    return [
        Peer(
            rank,
            inboxes[rank],
            flags[rank],
            *(torch.tensor(of_all, dtype=torch.int64, device=device) for of_all in addresses),
            counts=torch.zeros(most_rows, dtype=torch.int32, device=device),
            failed=torch.zeros(1, dtype=torch.int32, device=device),
        )
        for rank, device in enumerate(devices)
    ]
