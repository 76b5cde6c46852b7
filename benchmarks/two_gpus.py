"""Decode a model that is divided over several GPUs, beside the time of reading its weights once at one GPU's bandwidth.

    python benchmarks/two_gpus.py [--by layers] [--model vila1.5-40b] [--weights bf16] [--devices cuda:0 cuda:1]
                                  [--out FILE]

Claim: VILA-1.5-40B's shapes in bf16 on two GPUs, split by layers, decode at no less than 0.70 of that limit, batch 1.
`--by heads` measures tensor parallelism, whose GPUs read their shares at the same time: the limit is the same, and what
it reaches is more than 1 if it decodes faster than any split by layers. The script exits with 1 below 0.70. Weights are
random. `--model nvila-0.5b --devices cpu cpu --layers 2` tries it without GPUs.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from vila_core.bench.limits import measure_limits
from vila_core.bench.measure import measure
from vila_core.bench.random_model import WEIGHT_KINDS, checkpoint_of
from vila_core.bench.shapes import LANGUAGE_SHAPES, TITLES, model_shape
from vila_core.bench.work import work_of
from vila_core.loading import load_checkpoint
from vila_core.placement import free_bytes

CLAIM = 0.70
CONTEXT = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=LANGUAGE_SHAPES, default="vila1.5-40b")
    parser.add_argument("--weights", choices=WEIGHT_KINDS, default="bf16")
    parser.add_argument("--devices", nargs="+", default=["cuda:0", "cuda:1"])
    parser.add_argument("--by", choices=("layers", "heads"), default="layers", help="what each GPU has some of")
    parser.add_argument("--layers", type=int, help="fewer blocks than the model has")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    args = parser.parse_args()
    dtype = "float16" if args.weights == "w4" else "bfloat16"
    config = model_shape(args.model, dtype)
    if args.layers:
        decoder = config.language_model.model_copy(update={"num_hidden_layers": args.layers})
        config = config.model_copy(update={"language_model": decoder})
    checkpoint = checkpoint_of(config, TITLES[args.model], args.weights)
    device_map = args.devices if args.by == "layers" else f"tensor:{','.join(args.devices)}"
    model = load_checkpoint(checkpoint, device_map=device_map, dtype=dtype, progress=False)
    limits = measure_limits(torch.device(args.devices[0]), model.dtype)
    results = measure(model, work_of(checkpoint, dtype), limits, context=CONTEXT)
    print(f"{model}\n{device_map}, reads {limits.bytes_per_second / 1e9:,.0f} GB/s")
    for device in dict.fromkeys(args.devices):
        print(f"{device}: {(free_bytes(torch.device(device)) or 0) / 2**30:.1f} GiB are still free")
    for result in results:
        print(f"{result.name:>12} {result.value:10.3f}, limit {result.limit:10.3f}: {result.of_limit:.2f} of it")
    if args.out:
        report = {
            "model": args.model,
            "weights": args.weights,
            "devices": args.devices,
            "by": args.by,
            "limits": asdict(limits),
        }
        rows = [asdict(result) | {"of_limit": result.of_limit} for result in results]
        args.out.write_text(json.dumps(report | {"torch": torch.__version__, "results": rows}, indent=2) + "\n")
    return 0 if results[0].of_limit >= CLAIM else 1


if __name__ == "__main__":
    sys.exit(main())
