"""A vision tower on a GPU beside the compute limit: ours in bf16, fp8 and int8, and transformers.

    python benchmarks/vision.py [--tiles 1 8 64] [--out results/vision.json] [--plot docs/assets/vision.svg]

SigLIP-SO400M at 448 pixels (NVILA), all 27 layers, random weights, random pixels on the GPU. `limit` is the time of
the tower's arithmetic (products and attention) at the rate of a large square bf16 product of the same run. Times are
medians between events around a call, with its launches. Exits with 1 where features differ from fp32 by more than the
dtype explains.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_timing import time_once
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from w4a16 import SQUARE, operations_per_second

import vila_core
from vila_core.bench.shapes import SIGLIP_SO400M_448
from vila_core.config import SiglipConfig
from vila_core.towers.captured import use_fused_tower
from vila_core.towers.siglip import SiglipTower
from vila_quant.kernels.fp8 import refuse_fp8
from vila_quant.kernels.kernel import LinearShape
from vila_quant.quantizing.smoothing import BRANCHES, TowerMode, quantize_linear, tower_layers

GPU = torch.device("cuda")
TILES = (1, 8, 64)
CONFIG = SIGLIP_SO400M_448.model_copy(update={"select_layer": -1, "select_feature": "cls_patch"})
TOLERANCE = {"bf16": 0.05, "fp8": 0.2, "int8": 0.1}
"""Relative error of the features after 27 layers."""


def operations(config: SiglipConfig) -> float:
    """Return the operations of one image: patches, products of the layers that run, and attention."""
    patches = (config.image_size // config.patch_size) ** 2
    width, inner = config.hidden_size, config.intermediate_size
    layer = 2 * patches * (4 * width * width + 2 * width * inner) + 4 * patches**2 * width
    embedding = 2 * patches * width * config.num_channels * config.patch_size**2
    return config.num_hidden_layers * layer + embedding


def milliseconds(call: Callable[[], object], seconds: float = 0.5) -> float:
    """Return the median time of `call` on the GPU, launches included."""
    for _ in range(3):
        call()
    times: list[float] = []
    while len(times) < 10 or (sum(times) < 1e3 * seconds and len(times) < 100):
        torch.cuda.synchronize()
        times.append(time_once(call))
    return statistics.median(times)


def sustained_operations_per_second(seconds: float = 1.5) -> float:
    """Return the rate of the same product after so many seconds of it, when the power limit lowers the clock."""
    a = torch.randn(SQUARE, SQUARE, device=GPU, dtype=torch.bfloat16)
    took = milliseconds(lambda: a @ a.T)
    for _ in range(int(1e3 * seconds / took)):
        torch.mm(a, a.T)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(100):
        torch.mm(a, a.T)
    end.record()
    end.synchronize()
    return 100 * 2 * SQUARE**3 / start.elapsed_time(end) * 1e3


def random_tower() -> SiglipTower:
    """Return a tower with random weights that keep the residual in the range of a trained one, fp32, on the GPU."""
    torch.manual_seed(0)
    with GPU:
        tower = SiglipTower(CONFIG)
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm | nn.Linear):
            nn.init.normal_(module.bias, std=0.1)
    return tower.eval().requires_grad_(False)


def quantized(tower: SiglipTower, mode: TowerMode) -> SiglipTower:
    """Return a copy of the bf16 tower with 8-bit linears."""
    tower = copy.deepcopy(tower)
    for layer in tower_layers(tower).values():
        for branch in BRANCHES[type(layer)]:
            module = layer.get_submodule(branch.name)
            for name in (*branch.smoothed, *branch.others):
                linear = module.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                module.set_submodule(name, quantize_linear(linear, mode))
    return tower


def transformers_model(tower: SiglipTower) -> Any:
    """Return transformers' model with the weights of `tower`, bf16, with PyTorch's attention."""
    config = SiglipVisionConfig(
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.num_hidden_layers,
        num_attention_heads=CONFIG.num_attention_heads,
        image_size=CONFIG.image_size,
        patch_size=CONFIG.patch_size,
        vision_use_head=False,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    with GPU:
        model: Any = SiglipVisionModel(config).eval()
        model.to(torch.bfloat16)
    ours = {name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
    for name, tensor in model.state_dict().items():
        key = name.removeprefix("vision_model.")
        if key in ours:
            tensor.copy_(ours[key])
    return model


def runs(tower: SiglipTower) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what is measured, by name: the fused tower in each precision, its plain forward, transformers."""
    half = copy.deepcopy(tower).to(torch.bfloat16)
    model = transformers_model(half)
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "transformers": lambda pixels: model(pixels).last_hidden_state,
        "plain": copy.deepcopy(half),
    }
    modes: list[TowerMode] = ["int8"] if refuse_fp8(LinearShape.eight_bit("fp8", 16, 16), GPU) else ["fp8", "int8"]
    for mode in modes:
        eight_bit = quantized(half, mode)
        use_fused_tower(eight_bit, torch.bfloat16)
        made[mode] = eight_bit
    use_fused_tower(half, torch.bfloat16)
    return {"bf16": half} | made


def draw(rows: Sequence[dict[str, float]], device: str, file: Path) -> None:
    """Draw times as multiples of the limit."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "vision"
    from matplotlib import pyplot as plt

    names = [name for name in ("transformers", "bf16", "int8", "fp8") if f"{name}_ms" in rows[0]]
    figure, axes = plt.subplots(figsize=(7, 3.2), constrained_layout=True)
    for place, name in enumerate(names):
        x = [index + (place - (len(names) - 1) / 2) * 0.2 for index in range(len(rows))]
        heights = [row[f"{name}_ms"] / row["limit_ms"] for row in rows]
        bars = axes.bar(x, heights, width=0.19, label=name if name == "transformers" else f"ours, {name}")
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [f"{int(row['tiles'])} tile{'s'[: row['tiles'] > 1]}" for row in rows])
    axes.set_ylabel("time / bf16 compute limit")
    axes.set_title(f"SigLIP-SO400M, 448 pixels, {device}", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=TILES)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--plot", type=Path, help="draw the numbers into this .svg or .png")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here")
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = random_tower()
    measured = runs(exact)
    rate, sustained = operations_per_second(), sustained_operations_per_second()
    device = torch.cuda.get_device_name()
    print(
        f"{device}: multiplies {rate / 1e12:.0f} TFLOP/s in bf16, {sustained / 1e12:.0f} after some seconds; "
        f"{operations(CONFIG) / 1e12:.3f} TFLOP an image"
    )
    sample = torch.randn(2, 3, CONFIG.image_size, CONFIG.image_size, device=GPU)
    expected = exact(sample)
    errors: dict[str, float] = {}
    for name, run in measured.items():
        if name != "transformers":  # its features are after the final norm
            features = run(sample.to(torch.bfloat16)).float()
            errors[name] = ((features - expected).norm() / expected.norm()).item()
    print("relative error: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    rows: list[dict[str, float]] = []
    for tiles in args.tiles:
        pixels = torch.randn(tiles, 3, CONFIG.image_size, CONFIG.image_size, device=GPU, dtype=torch.bfloat16)
        row: dict[str, float] = {"tiles": tiles, "limit_ms": 1e3 * tiles * operations(CONFIG) / rate}
        for name, run in measured.items():
            row[f"{name}_ms"] = milliseconds(lambda run=run, pixels=pixels: run(pixels))
        rows.append(row)
        parts = [f"{name} {row[f'{name}_ms']:.2f} ({row[f'{name}_ms'] / row['limit_ms']:.2f})" for name in measured]
        print(f"{tiles:3} tiles: limit {row['limit_ms']:.2f} ms; " + ", ".join(parts), flush=True)
    report = {
        "device": device,
        "torch": torch.__version__,
        "vila_core": vila_core.__version__,
        "bf16_operations_per_second": rate,
        "sustained_bf16_operations_per_second": sustained,
        "errors": errors,
        "rows": rows,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    if args.plot:
        draw(rows, device, args.plot)
    return 1 if any(errors[name] > TOLERANCE.get(name, 0.05) for name in errors) else 0


if __name__ == "__main__":
    sys.exit(main())
