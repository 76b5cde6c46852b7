"""Attention within the sequences of a packed row, forwards and backwards: cuDNN beside flash attention, on a GPU.

    pip install "vila-core[cudnn]"
    python benchmarks/packed_attention.py [--json results/packed_attention.json]

Shapes of NVILA-8B (28 query heads, 4 key/value heads, 128 wide, bf16), and rows of 8,192 tokens: ten ragged samples,
like a row of `training.py`, two sequences, and one. Operations are those of products over the keys that a token sees,
five backwards for two forwards, over the ceiling, an 8192 x 8192 x 8192 product in the same run.

Claim: on a Hopper GPU, cuDNN takes less time than flash attention, and their results agree within 1 %. The exit code is
1 if that does not hold.
"""

import argparse
import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from gpu_timing import milliseconds
from torch import Tensor

import vila_core
from vila_core.bench.limits import measure_limits
from vila_core.language import cudnn_packed
from vila_core.language.attention import attend_packed
from vila_core.language.packed import PackedSequences

HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128
ROWS = {
    "ten samples": (402, 1221, 610, 1433, 350, 905, 1100, 777, 560, 832),
    "two sequences": (4096, 4096),
    "one sequence": (8192,),
}
TOLERANCE = 0.01


class Row:
    """A packed row, whose queries, keys and values are columns of one tensor, as a joint projection gives them."""

    def __init__(self, lengths: tuple[int, ...]):
        device = torch.device("cuda", torch.cuda.current_device())
        self.packed = PackedSequences.of(lengths, device)
        widths = [HEAD_DIM * heads for heads in (HEADS, KV_HEADS, KV_HEADS)]
        joint = torch.randn(sum(lengths), sum(widths), device=device, dtype=torch.bfloat16)
        heads = (x.unflatten(1, (-1, HEAD_DIM)).transpose(0, 1)[None] for x in joint.split(widths, dim=1))
        self.inputs = [x.requires_grad_() for x in heads]
        self.grad = torch.randn_like(self.forward())
        pairs = sum(length * (length + 1) / 2 for length in lengths)
        self.operations = 4 * pairs * HEADS * HEAD_DIM

    def forward(self) -> Tensor:
        q, k, v = self.inputs
        return attend_packed(q, k, v, self.packed, None)

    def both(self) -> tuple[Tensor, ...]:
        """Return the output and the gradients."""
        out = self.forward()
        return out, *torch.autograd.grad(out, self.inputs, self.grad)

    def figures(self, ceiling: float) -> dict[str, float]:
        """Return times and rates."""
        forward, both = milliseconds(self.forward), milliseconds(self.both)
        return {
            "forward_ms": round(forward, 3),
            "forward_of_ceiling": round(self.operations / (forward / 1e3) / ceiling, 3),
            "both_ms": round(both, 3),
            "both_of_ceiling": round(3.5 * self.operations / (both / 1e3) / ceiling, 3),
        }


def difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Return the largest relative difference of the tensors."""
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).float().norm() / other.float().norm()) for one, other in pairs)


def compare(name: str, ceiling: float) -> dict[str, object]:
    """Return the figures of a row with both."""
    torch.manual_seed(0)
    row = Row(ROWS[name])
    with patch.object(cudnn_packed, "is_installed", lambda: False):
        expected, flash = row.both(), row.figures(ceiling)
    found, cudnn = row.both(), row.figures(ceiling)
    return {
        "row": name,
        "flash": flash,
        "cudnn": cudnn,
        "flash_over_cudnn": round(flash["both_ms"] / cudnn["both_ms"], 3),
        "difference": round(difference(found, expected), 5),
    }


def main() -> int:
    """Measure, print and check. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not cudnn_packed.is_installed():
        print("This needs an NVIDIA GPU and `pip install vila-core[cudnn]`.", file=sys.stderr)
        return 2
    ceiling = measure_limits(torch.device("cuda"), torch.bfloat16).operations_per_second
    machine: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "vila_core": vila_core.__version__,
        "ceiling_tflops": round(ceiling / 1e12),
    }
    print(json.dumps(machine))
    results = [compare(name, ceiling) for name in ROWS]
    for result in results:
        print(json.dumps(result))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
    is_hopper = torch.cuda.get_device_capability() == cudnn_packed.CAPABILITY
    holds = all(result["flash_over_cudnn"] > 1 and result["difference"] < TOLERANCE for result in results)  # pyright: ignore[reportOperatorIssue]
    return 0 if holds or not is_hopper else 1


if __name__ == "__main__":
    sys.exit(main())
