"""Quantize a random model of a released one's shapes: seconds by phase, peak memory, and whether the claims hold.

    python benchmarks/quantize_model.py nvila-8b --out results/quantize-8b.json
    python benchmarks/quantize_model.py nvila-0.5b --device cpu --out results/quantize-0.5b.json

Claims: NVILA-8B's shapes on an H200 take at most 180 s for the whole command, and at most 24 GB of GPU memory. Exits
with 1 if one fails. The command runs in its own process, so imports count. Random weights say nothing about accuracy.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from random_checkpoint import NAMES, write_random_checkpoint

CLAIMS = {"nvila-8b": {"seconds": 180.0, "gpu_bytes": 24e9}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES, help="whose shapes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the numbers")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("benchmark-work"),
        help="folder for the checkpoints (NVILA-8B: 16 GB and 6 GB)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, help="fewer blocks than the model has, to try the script")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("arguments", nargs="*", help="for vila-quant awq, after --")
    args = parser.parse_args()

    model, quantized = args.work / args.name, args.work / f"{args.name}-awq"
    if args.layers:
        model = args.work / f"{args.name}-{args.layers}"
    if not model.exists():
        write_random_checkpoint(args.name, model, args.layers)
    if quantized.exists():
        shutil.rmtree(quantized)
    # The tokenizer's vocabulary is small, but text it can spell.
    options = ["--device", args.device, "--conv-mode", "auto", "--calibration", "builtin", "--restart", *args.arguments]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vila_quant", "awq", str(model), str(quantized), *options], check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        return done.returncode
    report = json.loads((quantized / "quantization_report.json").read_text())
    numbers = {
        "model": args.name,
        "layers": len(report["layers"]),
        "device": report["device"],
        "seconds": seconds,
        "seconds_by_phase": report["seconds"],
        "seconds_a_layer": sum(layer["seconds"] for layer in report["layers"]) / len(report["layers"]),
        "peak_memory_bytes": report["peak_memory_bytes"],
        "calibration": report["calibration"],
        "remaining_loss": report["remaining_loss"],
        "sizes": report["sizes"],
    }
    claims = CLAIMS.get(args.name, {}) if args.device.startswith("cuda") and not args.layers else {}
    numbers["claims"] = {
        **({"seconds": seconds <= claims["seconds"]} if "seconds" in claims else {}),
        **({"gpu_bytes": report["peak_memory_bytes"] <= claims["gpu_bytes"]} if "gpu_bytes" in claims else {}),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps(numbers, indent=2))
    if not args.keep:
        for folder in (model, quantized):  # and nothing else that may lie there
            shutil.rmtree(folder)
    return 0 if all(numbers["claims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
