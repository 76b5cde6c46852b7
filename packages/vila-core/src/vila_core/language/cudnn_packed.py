"""Attention within packed sequences by cuDNN, which takes two thirds of the time of flash attention on Hopper.

PyTorch 2.11 plans anew in each call of cuDNN for packed rows (40 ms), and its backward pass takes the width of a head
for the length of the sequences (pytorch/pytorch#161434 and #186142). So plans are made and kept here, with NVIDIA's
cudnn-frontend (`pip install vila-core[cudnn]`), whose documentation of attention names the parts of a graph.
`benchmarks/packed_attention.py` compares both.

S sequences, T tokens of all of them, H query heads, H_kv key/value heads, D_h head width
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from vila_core.errors import warn
from vila_core.language.packed import PackedSequences

CAPABILITY = (9, 0)
"""Compute capability of the GPUs on which cuDNN was faster."""
HEAD_DIMS = (64, 128)
DTYPES = (torch.float16, torch.bfloat16)
LEAST_SEQUENCES, LEAST_TOKENS = 16, 1024
LENGTHS = ("lengths", "key_lengths")
MAX_OFFSET = 2**31 - 1
"""Offsets of sequences are 32-bit integers."""


def attend(q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences) -> Tensor | None:
    """Attend causally within each sequence; return None if flash attention is to do it.

    `q [T, H, D_h]`, `k`, `v` `[T, H_kv, D_h]` -> `[T, H, D_h]`.
    """
    if not _is_worth_it(q):
        return None
    if q.numel() > MAX_OFFSET:
        return None
    # Rows of any length share a plan. Besides, cuDNN's backward pass is wrong if a gradient lies otherwise than its
    # input, and takes seven times the workspace for columns of one tensor.
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    plan = _plan(Layout.of(q, k, packed))
    return None if plan is None else cast("Tensor", _Attention.apply(q, k, v, packed, plan))


def _is_worth_it(q: Tensor) -> bool:
    return (
        q.is_cuda
        and q.dtype in DTYPES
        and q.shape[2] in HEAD_DIMS
        and is_installed()
        and torch.cuda.get_device_capability(q.device) == CAPABILITY
        and not torch.are_deterministic_algorithms_enabled()
    )


@cache
def is_installed() -> bool:
    """Return whether cudnn-frontend is installed, and PyTorch has cuDNN."""
    return find_spec("cudnn") is not None and torch.backends.cudnn.is_available()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences, plan: Plan) -> Tensor:
        o, stats = plan.forward(q, k, v, packed)
        ctx.save_for_backward(q, k, v, o, stats)
        ctx.plan, ctx.packed = plan, packed
        return o

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, o, stats = ctx.saved_tensors
        plan: Plan = ctx.plan
        return *plan.backward(q, k, v, o, stats, gradients[0].contiguous(), ctx.packed), None, None


@dataclass(frozen=True)
class Layout:
    """What a plan depends on.

    Attributes:
        device: of the tensors.
        dtype: of the tensors.
        num_heads: H.
        num_kv_heads: H_kv.
        head_dim: D_h.
        num_sequences: most sequences of a row, a power of two, so that few plans are made.
        num_tokens: most tokens of a row, a power of two.
    """

    device: torch.device
    dtype: torch.dtype
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_sequences: int
    num_tokens: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, packed: PackedSequences) -> Layout:
        """Return the layout for arguments of `attend`."""
        num_sequences = _power_of_two(max(len(packed.lengths), LEAST_SEQUENCES))
        num_tokens = _power_of_two(max(len(q), LEAST_TOKENS))
        return cls(q.device, q.dtype, q.shape[1], k.shape[1], q.shape[2], num_sequences, num_tokens)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


class Plan:
    """A forward and a backward graph for rows of one layout. Raises `RuntimeError` if cuDNN cannot compute them."""

    def __init__(self, layout: Layout):
        self.layout = layout
        with torch.cuda.device(layout.device):
            self._forward = self._forward_graph()
            self._backward = self._backward_graph()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences) -> tuple[Tensor, Tensor]:
        """Return the output `[T, H, D_h]`, and the logarithms of the sums of each softmax, fp32 `[T, H]`."""
        o = torch.empty_like(q)
        stats = q.new_empty(q.shape[:2], dtype=torch.float32)
        self._forward.execute({"q": q, "k": k, "v": v, "o": o, "stats": stats}, self._places(packed), q.device)
        return o, stats

    def backward(
        self, q: Tensor, k: Tensor, v: Tensor, o: Tensor, stats: Tensor, grad_o: Tensor, packed: PackedSequences
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v."""
        grad_q, grad_k, grad_v = map(torch.empty_like, (q, k, v))
        tensors = {"q": q, "k": k, "v": v, "o": o, "stats": stats, "grad_o": grad_o}
        tensors |= {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v}
        self._backward.execute(tensors, self._places(packed), q.device)
        return grad_q, grad_k, grad_v

    def _places(self, packed: PackedSequences) -> dict[str, Tensor]:
        """Return the lengths of the sequences, and where they begin, in elements of each kind of tensor."""
        layout, count = self.layout, self.layout.num_sequences
        strides = {
            "heads": layout.num_heads * layout.head_dim,
            "kv_heads": layout.num_kv_heads * layout.head_dim,
            "stats": layout.num_heads,
        }
        lengths = dict.fromkeys(LENGTHS, _lengths(packed, count))
        return lengths | {name: _starts(packed, count, stride) for name, stride in strides.items()}

    def _forward_graph(self) -> _Graph:
        graph = _Graph(self.layout)
        o, stats = graph.built.sdpa(**self._inputs(graph), **self._options(graph), generate_stats=True)
        graph.give("o", o, "heads")
        graph.give("stats", stats, "stats")
        return graph.finished()

    def _backward_graph(self) -> _Graph:
        graph = _Graph(self.layout)
        inputs = self._inputs(graph)
        inputs |= {"o": graph.take("o", "heads"), "dO": graph.take("grad_o", "heads")}
        inputs["stats"] = graph.take("stats", "stats")
        tokens = self.layout.num_tokens
        most = {"max_total_seq_len_q": tokens, "max_total_seq_len_kv": tokens}
        grad_q, grad_k, grad_v = graph.built.sdpa_backward(**inputs, **self._options(graph), **most)
        graph.give("grad_q", grad_q, "heads")
        graph.give("grad_k", grad_k, "kv_heads")
        graph.give("grad_v", grad_v, "kv_heads")
        return graph.finished()

    def _inputs(self, graph: _Graph) -> dict[str, Any]:
        return {name: graph.take(name, kind) for name, kind in (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads"))}

    def _options(self, graph: _Graph) -> dict[str, Any]:
        return {
            "attn_scale": self.layout.head_dim**-0.5,
            "use_causal_mask": True,
            "use_padding_mask": True,
            "seq_len_q": graph.place("lengths"),
            "seq_len_kv": graph.place("key_lengths"),
        }


class _Graph:
    """A graph of cudnn-frontend whose tensors have names, and are of three kinds.

    These are "heads" `[T, H, D_h]`, "kv_heads" `[T, H_kv, D_h]` and "stats" `[T, H]` in fp32.
    """

    def __init__(self, layout: Layout):
        import cudnn  # pyright: ignore[reportMissingImports]

        self._cudnn: Any = cudnn
        self._layout = layout
        types = cudnn.data_type
        self._dtype = types.BFLOAT16 if layout.dtype == torch.bfloat16 else types.HALF
        self.built: Any = cudnn.pygraph(
            io_data_type=self._dtype,
            intermediate_data_type=types.FLOAT,
            compute_data_type=types.FLOAT,
            handle=_handle(layout.device),
        )
        self._tensors: dict[str, Any] = {}
        self._places: dict[str, Any] = {}

    def take(self, name: str, kind: str) -> Any:
        """Declare an input of a kind."""
        dim, strides = self._shape(kind)
        tensor = self.built.tensor(name=name, dim=dim, stride=strides, data_type=self._dtype_of(kind))
        self._tensors[name] = tensor.set_ragged_offset(self.place(kind))
        return tensor

    def give(self, name: str, tensor: Any, kind: str) -> None:
        """Declare `tensor` to be an output of a kind."""
        dim, strides = self._shape(kind)
        tensor.set_output(True).set_dim(dim).set_stride(strides).set_ragged_offset(self.place(kind))
        self._tensors[name] = tensor.set_data_type(self._dtype_of(kind))

    def place(self, name: str) -> Any:
        """Return the input that says where sequences begin in a kind of tensors, or one of their `LENGTHS`."""
        if name not in self._places:
            count = self._layout.num_sequences + (name not in LENGTHS)
            int32 = self._cudnn.data_type.INT32
            self._places[name] = self.built.tensor(
                name=f"place_{name}", dim=[count, 1, 1, 1], stride=[1, 1, 1, 1], data_type=int32
            )
        return self._places[name]

    def _dtype_of(self, kind: str) -> Any:
        return self._cudnn.data_type.FLOAT if kind == "stats" else self._dtype

    def _shape(self, kind: str) -> tuple[list[int], list[int]]:
        """Return dimensions and strides in cuDNN's order: sequence, head, token, element."""
        layout = self._layout
        heads = layout.num_kv_heads if kind == "kv_heads" else layout.num_heads
        width = 1 if kind == "stats" else layout.head_dim
        sequences, tokens, token = layout.num_sequences, layout.num_tokens, heads * width
        return [sequences, heads, tokens, width], [tokens * token, width, token, 1]

    def finished(self) -> _Graph:
        """Let cuDNN choose its kernels."""
        self.built.validate()
        self.built.build_operation_graph()
        self.built.create_execution_plans([self._cudnn.heur_mode.A])
        self.built.check_support()
        self.built.build_plans()
        self._workspace = max(1, int(self.built.get_workspace_size()))
        return self

    def execute(self, tensors: dict[str, Tensor], places: dict[str, Tensor], device: torch.device) -> None:
        """Compute on the current stream of `device`."""
        with torch.cuda.device(device):
            workspace = torch.empty(self._workspace, dtype=torch.uint8, device=device)
            given = {self._tensors[name]: tensor for name, tensor in tensors.items()}
            given |= {declared: places[name] for name, declared in self._places.items()}
            self.built.execute(given, workspace, handle=_handle(device))


@lru_cache(maxsize=256)
def _plan(layout: Layout) -> Plan | None:
    """Return the plan for a layout; None, after a warning, if cuDNN cannot compute it."""
    try:
        return Plan(layout)
    except Exception as error:  # noqa: BLE001 - cudnn-frontend has no common class of errors
        warn(f"Packed rows use flash attention, since cuDNN has no plan for them: {error}")
        return None


_handles = threading.local()


def _handle(device: torch.device) -> Any:
    """Return this thread's handle of cuDNN on `device`, which is the current one, set to the current stream."""
    import cudnn  # pyright: ignore[reportMissingImports]

    own: dict[str, Any] = vars(_handles)
    if str(device) not in own:
        own[str(device)] = cudnn.create_handle()
    cudnn.set_stream(own[str(device)], torch.cuda.current_stream(device).cuda_stream)
    return own[str(device)]


@lru_cache(maxsize=64)
def _starts(packed: PackedSequences, count: int, stride: int) -> Tensor:
    """Return where each of `count` sequences begins, and the end, times `stride`: int32 `[count + 1]`.

    Those that the row does not have are empty.
    """
    bounds = packed.bounds
    return torch.cat([bounds, bounds[-1:].expand(count + 1 - len(bounds))]) * stride


@lru_cache(maxsize=16)
def _lengths(packed: PackedSequences, count: int) -> Tensor:
    """Return the lengths of `count` sequences: int32 `[count]`."""
    return _starts(packed, count, 1).diff()
