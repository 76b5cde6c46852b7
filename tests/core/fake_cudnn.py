"""The part of cudnn-frontend that packed rows need, computed by PyTorch from the declared dimensions and strides."""

from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

data_type = Enum("data_type", ["HALF", "BFLOAT16", "FLOAT", "INT32"])
heur_mode = SimpleNamespace(A="A")


class Tensor:
    """A declared tensor; setters return it, as cudnn-frontend's do."""

    def __init__(self, dim: list[int] | None = None, stride: list[int] | None = None, data_type: Any = None):
        self.dim, self.stride, self.data_type = dim, stride, data_type
        self.starts: Tensor | None = None
        self.is_output = False

    def set_ragged_offset(self, starts: "Tensor") -> "Tensor":
        self.starts = starts
        return self

    def set_output(self, value: bool) -> "Tensor":
        self.is_output = value
        return self

    def set_dim(self, dim: list[int]) -> "Tensor":
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> "Tensor":
        self.stride = stride
        return self

    def set_data_type(self, data_type: Any) -> "Tensor":
        self.data_type = data_type
        return self

    def sequence(self, given: dict["Tensor", torch.Tensor], index: int, length: int) -> torch.Tensor:
        """Return one sequence of what was given for this tensor, `[heads, length, width]`, to be read or written."""
        assert self.dim is not None
        assert self.stride is not None
        assert self.starts is not None
        data = given[self]
        start = data.storage_offset() + int(given[self.starts][index])
        return data.as_strided((self.dim[1], length, self.dim[3]), tuple(self.stride[1:]), start)


class pygraph:  # noqa: N801 - the name in cudnn-frontend
    def __init__(self, **types: Any):
        self._compute: Any = None
        self._differentiated: tuple[Tensor, ...] | None = None

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: Any) -> Tensor:
        return Tensor(dim, stride, data_type)

    def sdpa(self, *, q: Tensor, k: Tensor, v: Tensor, generate_stats: bool, **options: Any) -> tuple[Tensor, Tensor]:
        o, stats = Tensor(), Tensor()

        def compute(given: dict[Tensor, torch.Tensor], index: int, length: int) -> None:
            out, sums = _attend(*(x.sequence(given, index, length) for x in (q, k, v)), options["attn_scale"])
            o.sequence(given, index, length).copy_(out)
            stats.sequence(given, index, length).copy_(sums)

        self._compute, self._options, self._outputs = compute, options, (o, stats)
        return o, stats

    def sdpa_backward(
        self,
        *,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        dO: Tensor,  # noqa: N803 - the name in cudnn-frontend
        stats: Tensor,
        **options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = (Tensor(), Tensor(), Tensor())

        def compute(given: dict[Tensor, torch.Tensor], index: int, length: int) -> None:
            with torch.enable_grad():
                inputs = [x.sequence(given, index, length).clone().requires_grad_() for x in (q, k, v)]
                out, sums = _attend(*inputs, options["attn_scale"])
            torch.testing.assert_close(o.sequence(given, index, length), out.detach())
            torch.testing.assert_close(stats.sequence(given, index, length), sums.detach())
            found = torch.autograd.grad(out, inputs, dO.sequence(given, index, length))
            for declared, gradient in zip(grads, found, strict=True):
                declared.sequence(given, index, length).copy_(gradient)

        self._compute, self._options, self._outputs = compute, options, grads
        self._differentiated = (q, k, v)
        return grads

    def _require_equal_places(self, inputs: tuple[Tensor, ...]) -> None:
        """cuDNN's backward pass is wrong if a gradient lies otherwise than its input."""
        for one, other in zip(inputs, self._outputs, strict=True):
            assert (one.dim, one.stride, one.starts) == (other.dim, other.stride, other.starts)

    def validate(self) -> None:
        assert self._options["use_causal_mask"]
        assert self._options["use_padding_mask"]
        assert all(output.is_output and output.starts is not None for output in self._outputs)
        if self._differentiated is not None:
            self._require_equal_places(self._differentiated)

    def build_operation_graph(self) -> None: ...

    def create_execution_plans(self, modes: list[str]) -> None: ...

    def check_support(self) -> None: ...

    def build_plans(self) -> None: ...

    def get_workspace_size(self) -> int:
        return 0

    def execute(self, given: dict[Tensor, torch.Tensor], workspace: torch.Tensor, handle: Any) -> None:
        lengths, key_lengths = given[self._options["seq_len_q"]], given[self._options["seq_len_kv"]]
        assert lengths.dtype == torch.int32
        assert torch.equal(lengths, key_lengths)
        for index, length in enumerate(lengths.tolist()):
            if length:
                self._compute(given, index, length)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
    seen = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale), scores.logsumexp(-1, keepdim=True)
