"""Loss by method and group size on decoder blocks, and by α on the vision tower (--plot needs matplotlib).

python benchmarks/quantization_loss.py --out quantization-loss                  # vila-tiny, minutes on a laptop
python benchmarks/quantization_loss.py --out loss-8b --width 3584 --device cuda  # and a random block of an 8B model
python benchmarks/quantization_loss.py --out quantization-loss --plot docs/assets/quantization-loss.svg

Every number is a relative root mean square error on held-out inputs: of what a block adds to the residual stream, or
of a tower's features. The random weights are as hard to quantize as real ones: outlier inputs twelve times as large as
others, and long tails.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import vila_core as vila
from vila_core.config import DecoderConfig
from vila_core.language.decoder import Block, Decoder
from vila_core.language.rope import Rotary
from vila_quant.awq.block import BlockInputs, run_block
from vila_quant.awq.method import BlockOptions
from vila_quant.awq.methods import METHODS
from vila_quant.calibration.embedding import Calibration, Embedder, collect
from vila_quant.calibration.samples import read_samples, resolve_source
from vila_quant.quantizing.smoothing import ALPHAS, BranchLoss, quantize_tower

GROUP_SIZES = (32, 64, 128)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for loss.json; what is there already is not measured again"
    )
    parser.add_argument("--plot", type=Path, help="draw loss.json into this .svg or .png")
    parser.add_argument("--model", help="folder or hub id; without it, vila-tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--blocks", type=int, nargs="*", help="of the model; without it, all")
    parser.add_argument("--width", type=int, help="of a random block, with the proportions of Qwen2-7B")
    arguments = parser.parse_args()
    file = arguments.out / "loss.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": []}
    rows: list[Row] = found["rows"]
    if not file.exists() or arguments.width:
        done = {row["model"] for row in rows}
        rows += measure(arguments, done)
        arguments.out.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({"rows": rows, "device": arguments.device, "torch": torch.__version__}, indent=1) + "\n"
        )
    if arguments.plot:
        draw(rows, arguments.plot)


def measure(arguments: argparse.Namespace, done: set[str]) -> Iterator[Row]:
    """Yield a row for each measurement; models in `done` are left out."""
    name = arguments.model or "vila-tiny"
    if name not in done:
        yield from measure_model(name, arguments)
    random_name = f"random block, width {arguments.width}"
    if arguments.width and random_name not in done:
        yield from measure_random(random_name, arguments)


def measure_model(name: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """The blocks of a model, one after the other on what whole ones give, and its tower."""
    model = vila.load(arguments.model, device=arguments.device, dtype="float32")
    checkpoint, decoder = model.checkpoint, model.network.llm
    assert checkpoint is not None, "loaded from a checkpoint"
    assert isinstance(decoder, Decoder), "the native decoder"
    source = resolve_source("auto", decoder.config.vocab_size)
    seen: list[Calibration] = []
    for seed in (0, 1):
        embedder = Embedder(checkpoint, model.tokenizer, model.template, model.device, torch.float32, None)
        samples = read_samples(source, seed, picture_share=0.5)
        seen.append(collect(samples, embedder, arguments.sequences, arguments.length, exact=True))
    contexts = [one.block_inputs(decoder.config, model.device) for one in seen]
    hidden = [one.embeds for one in seen]
    with torch.no_grad():
        for number, block in enumerate(cast("list[Block]", list(decoder.model.layers))):
            if arguments.blocks is None or number in arguments.blocks:
                yield from measure_block(name, number, block, hidden, contexts)
            hidden = [run_block(block, x, context) for x, context in zip(hidden, contexts, strict=True)]
    yield from measure_tower(name, model, [pixels.to(model.device) for pixels in seen[0].pixels])


def measure_random(name: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """One block of random weights with outliers, in the proportions of Qwen2-7B."""
    width = arguments.width
    config = DecoderConfig(
        hidden_size=width,
        intermediate_size=round(width * 18944 / 3584 / 128) * 128,
        num_hidden_layers=1,
        num_attention_heads=max(1, width // 128),
        num_key_value_heads=max(1, width // 896),
        head_dim=min(width, 128),
        max_position_embeddings=4096,
        vocab_size=32,
        max_length=4096,
        architecture="qwen2",
        attention_bias=True,
    )
    generator = torch.Generator().manual_seed(0)
    block = Block(config, 0).requires_grad_(False)
    for parameter in block.parameters():
        drawn = 0.02 * torch.randn(parameter.shape, generator=generator)
        tails = torch.rand(parameter.shape, generator=generator) < 0.002
        parameter.copy_(torch.where(tails, 5 * drawn, drawn) if parameter.ndim == 2 else drawn)
    for norm in (block.input_layernorm, block.post_attention_layernorm):
        norm.weight.fill_(1.0)
        norm.weight[torch.randperm(width, generator=generator)[: max(1, width // 42)]] = 12.0
    x = [
        torch.randn(arguments.sequences, arguments.length, width, generator=generator).to(arguments.device)
        for _ in range(2)
    ]
    block.to(arguments.device)
    rotation = Rotary(config).to(arguments.device)(
        torch.arange(arguments.length, device=arguments.device)[None], torch.float32
    )
    yield from measure_block(name, 0, block, x, [BlockInputs(rotation)] * 2)


@torch.no_grad()
def measure_block(name: str, number: int, block: Block, x: list[Tensor], contexts: list[BlockInputs]) -> Iterator[Row]:
    """Return the loss of every method at every group size: calibrated on the first inputs, judged on the second."""
    expected = run_block(block, x[1], contexts[1])
    power = (expected - x[1]).square().mean()
    widths = {block.self_attn.q_proj.in_features, block.self_attn.o_proj.in_features, block.mlp.down_proj.in_features}
    for group_size in (size for size in GROUP_SIZES if all(width % size == 0 for width in widths)):
        for method in METHODS.values():
            changed = copy.deepcopy(block)
            method.quantize_block(changed, x[0], contexts[0], BlockOptions(group_size=group_size))
            error = float(((run_block(changed, x[1], contexts[1]) - expected).square().mean() / power).sqrt())
            print(f"{name}, block {number}, groups of {group_size}, {method.name}: {error:.4f}", flush=True)
            yield {"model": name, "block": number, "group_size": group_size, "method": method.name, "error": error}


def measure_tower(name: str, model: vila.Vila, pixels: list[Tensor]) -> Iterator[Row]:
    """Each α and the search, in int8 and in fp8: root of the mean of the branches' squared errors."""
    for mode in ("int8", "fp8"):
        for alpha in (*(alpha for alpha in ALPHAS if alpha is not None), "search"):
            losses: list[BranchLoss] = []
            quantize_tower(model.network.vision_tower, pixels, mode, alpha, losses.append)
            error = (sum(loss.error**2 for loss in losses) / len(losses)) ** 0.5
            print(f"{name}, tower, {mode}, alpha {alpha}: {error:.4f}", flush=True)
            yield {"model": name, "mode": mode, "alpha": alpha, "error": error}


def draw(rows: list[Row], file: Path) -> None:
    """A panel a model: methods by group size; and one for the tower."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "quantization"
    models = list(dict.fromkeys(row["model"] for row in rows if "block" in row))
    towers = [row for row in rows if "alpha" in row]
    figure, axes = plt.subplots(
        1,
        len(models) + bool(towers),
        figsize=(5 * (len(models) + bool(towers)), 3.6),
        layout="constrained",
        squeeze=False,
    )
    for axis, name in zip(axes[0], models, strict=False):
        of_model = [row for row in rows if row["model"] == name and "block" in row]
        sizes = sorted({row["group_size"] for row in of_model})
        for place, method in enumerate(("nearest", "reference", "best")):
            squares = {
                size: [row["error"] ** 2 for row in of_model if (row["group_size"], row["method"]) == (size, method)]
                for size in sizes
            }
            heights = [100 * (sum(values) / len(values)) ** 0.5 for values in squares.values()]
            bars = axis.bar([number + 0.27 * (place - 1) for number in range(len(sizes))], heights, 0.25, label=method)
            axis.bar_label(bars, fmt="%.1f", fontsize=8)
        axis.set_xticks(range(len(sizes)), [f"groups of {size}" for size in sizes])
        axis.set(title=f"W4: {name}", ylabel="error of a block, % of what it adds")
        axis.margins(y=0.45)
        axis.legend(loc="upper left", ncols=3, fontsize=8)
    if towers:
        for mode in dict.fromkeys(row["mode"] for row in towers):
            given = [row for row in towers if row["mode"] == mode and row["alpha"] != "search"]
            searched = next(row for row in towers if row["mode"] == mode and row["alpha"] == "search")
            (line,) = axes[0][-1].plot(
                [row["alpha"] for row in given], [100 * row["error"] for row in given], marker="o", label=mode
            )
            axes[0][-1].axhline(
                100 * searched["error"], color=line.get_color(), linestyle=":", label=f"{mode}, searched"
            )
        axes[0][-1].set(
            title=f"Vision tower: {towers[0]['model']}", xlabel="α", ylabel="error of a branch, %", ylim=(0, None)
        )
        axes[0][-1].legend()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
