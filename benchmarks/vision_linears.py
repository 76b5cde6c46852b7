"""Measure the linears of a vision tower in int8 (W8A8) and fp8 against bf16 on a GPU, in one run.

    python benchmarks/vision_linears.py [--tokens 10240] [--out results.json]

SigLIP's shapes with random weights; 10,240 tokens are ten tiles of 448 x 448. Times are for the whole layer, with the
quantization of activations. The floor is the product alone, at the rate of a square product of the same kind.
Makes no claim of speed, and exits with 1 where a result differs from bf16 by more than eight bits explain.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from gpu_timing import milliseconds
from torch import Tensor, nn

import vila_core
from vila_quant.kernels import LinearShape
from vila_quant.kernels.fp8 import FP8, refuse_fp8
from vila_quant.kernels.int8 import integer_product, quantize_rows
from vila_quant.quantizing.smoothing import TowerMode, quantize_linear

SHAPES = {"q, k, v, out": (1152, 1152), "fc1": (1152, 4304), "fc2": (4304, 1152)}
"""K and N of a block of SigLIP-SO400M."""

SQUARE = 8192
TOLERANCE = {"int8": 0.02, "fp8": 0.05}

GPU = torch.device("cuda")


def operations_a_second(kind: str) -> float:
    """Return the rate of a square product of whole matrices."""
    a = torch.randn(SQUARE, SQUARE, device=GPU)
    if kind == "int8":
        codes = quantize_rows(a)[0]
        took = milliseconds(lambda: integer_product(codes, codes))
    elif kind == "fp8":
        codes, one = a.to(FP8), torch.ones((), device=GPU)
        took = milliseconds(lambda: torch._scaled_mm(codes, codes.T, one, one, out_dtype=torch.bfloat16))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    else:
        half = a.bfloat16()
        took = milliseconds(lambda: half @ half.T)
    return 2 * SQUARE**3 / took * 1e3


def error(y: Tensor, expected: Tensor) -> float:
    return ((y.float() - expected.float()).norm() / expected.float().norm()).item()


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10240, help="M")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here")
    torch.manual_seed(0)
    modes: list[TowerMode] = ["int8"] if refuse_fp8(LinearShape.eight_bit("fp8", 16, 16), GPU) else ["int8", "fp8"]
    rates = {kind: operations_a_second(kind) for kind in ("bf16", *modes)}
    layers: dict[str, dict[str, float]] = {}
    failed = False
    for name, (inputs, outputs) in SHAPES.items():
        whole = nn.Linear(inputs, outputs, device=GPU, dtype=torch.bfloat16)
        x = torch.randn(args.tokens, inputs, device=GPU, dtype=torch.bfloat16)
        numbers: dict[str, float] = {}
        modules: dict[str, nn.Module] = {"bf16": whole, **{mode: quantize_linear(whole, mode) for mode in modes}}
        for kind, module in modules.items():
            numbers[f"{kind}_us"] = 1e3 * milliseconds(partial(module, x))
            numbers[f"{kind}_floor_us"] = 1e6 * 2 * args.tokens * inputs * outputs / rates[kind]
            if kind != "bf16":
                numbers[f"{kind}_error"] = error(module(x), whole(x))
                numbers[f"{kind}_of_bf16"] = numbers["bf16_us"] / numbers[f"{kind}_us"]
                failed |= numbers[f"{kind}_error"] > TOLERANCE[kind]
        layers[name] = numbers
        print(
            f"{name} {inputs} -> {outputs}: " + ", ".join(f"{key} {value:.3g}" for key, value in numbers.items()),
            flush=True,
        )
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "vila_core": vila_core.__version__,
        "tokens": args.tokens,
        "operations_a_second": rates,
        "layers": layers,
    }
    print(json.dumps({key: value for key, value in report.items() if key != "layers"}))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
