"""Time to draw images, beside the time that reading the weights takes.

    python benchmarks/drawing.py [--shapes vila-u-7b | tiny] [--batch 1 8 32] [--guidance 3] [--json results.json]
                                 [--profile]

Random weights in the shapes of VILA-U 7B at 256 pixels: LLaMA-2 7B, and a depth transformer of 6 layers of width 2560
(four codes of 16,384 at each of 256 positions). Images are drawn through the engine with guidance, top-k 900 and top-p
0.96; the decoder, which takes a few milliseconds, is left out. Wall-clock time, median of `--rounds` after one that
captures the graphs. The limit is that of memory, measured in the same run: every position reads the layers once, the
depth transformer D times, and the keys and values of all rows.

`--profile` prints what the GPU runs for a position, for each batch: kernels by name and by part, with their number and
time, the time in which none runs, and what runs before and after (from a few positions in the middle of an image).

Claim: one image takes at most 1.5 times the limit.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import vila_core as vila
from vila_core.bench.limits import measure_limits, synchronize
from vila_core.config import DecoderConfig, DepthTransformerConfig
from vila_core.engine.drawing import OutputModes
from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.engine.engine import Engine
from vila_core.engine.image_generation import draw_pictures, picture_request
from vila_core.engine.inputs import TextPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.generation.depth_transformer import DepthTransformer, DepthTransformerHead
from vila_core.generation.heads import GenerationHead
from vila_core.language.decoder import Decoder

PROMPT_TOKENS = 65
START = 7
SHAPES = {
    "vila-u-7b": (
        {"vocab_size": 32004, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128},
        {"embed_dim": 2560, "num_hidden_layers": 6, "num_attention_heads": 40, "code_width": 1024,
         "codebook_size": 16384, "code_depth": 4, "grid": (16, 16)},
    ),
    "tiny": (
        {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64},
        {"embed_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "code_width": 48, "codebook_size": 64,
         "code_depth": 4, "grid": (4, 4)},
    ),
}  # fmt: skip


class Codebook(nn.Module):
    """The part of a tower that drawing reads: embeddings of codes."""

    def __init__(self, config: DepthTransformerConfig):
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.codebook_size, config.code_width))

    @property
    def quantizer(self) -> Codebook:
        return self

    def embed_one(self, codes: Tensor, depth: int) -> Tensor:
        """`[R]` -> `[R, C]`."""
        del depth
        return self.table[codes]

    def embed_codes(self, codes: Tensor) -> Tensor:
        """`[..., D]` -> `[..., C]`."""
        return self.table[codes].sum(dim=-2)


class Drawer:
    """An engine with random weights.

    Args:
        shapes: a name of `SHAPES`.
        device: where it runs.
        dtype: of the weights.
        rows: at once.
    """

    def __init__(self, shapes: str, device: torch.device, dtype: torch.dtype, rows: int):
        language, depth = SHAPES[shapes]
        context = 1024
        config = DecoderConfig.model_validate(
            {"architecture": "llama", "max_length": context, "max_position_embeddings": context} | language
        )
        head_config = DepthTransformerConfig.model_validate({"hidden_size": config.hidden_size} | depth)
        with torch.device("meta"):
            self.decoder = Decoder(config)
            transformer, codebook = DepthTransformer(head_config), Codebook(head_config)
            width = config.hidden_size
            projector = nn.Sequential(nn.Linear(head_config.code_width, width), nn.GELU(), nn.Linear(width, width))
        for module in (self.decoder, transformer, codebook, projector):
            fill(module, device, dtype)
        self.transformer = transformer
        self.head = cast(
            "GenerationHead", DepthTransformerHead(transformer, cast("Any", codebook), cast("Any", projector))
        )
        self.device = device
        empty = [*range(20, 20 + 40), START]
        modes = OutputModes(self.head, {START: "image"}, lambda kind, text: empty)
        tokenizer = vila.load("vila-tiny", device="cpu").tokenizer
        self.engine = Engine(self.decoder, tokenizer, frozenset(), EngineConfig(max_batch=rows), modes=modes)

    @property
    def positions(self) -> int:
        """How many positions an image has."""
        return self.head.kinds["image"].positions

    def draw(self, count: int, guidance: float, seed: int) -> float:
        """Draw images; return the seconds."""
        ids = torch.randint(20, 300, (PROMPT_TOKENS - 1,), generator=torch.Generator().manual_seed(seed)).tolist()
        prompt = TextPrompt(self.decoder, [*ids, START])
        settings = DrawingConfig(guidance=guidance, seed=seed)
        synchronize(self.device)
        start = time.perf_counter()
        prompts = [(prompt, number) for number in range(count)]
        draw_pictures(self.engine, self.head, "image", prompts, settings, None, self.device)
        synchronize(self.device)
        return time.perf_counter() - start

    def bytes_of_image(self, count: int, guidance: float) -> float:
        """Return what drawing `count` images together reads at least."""
        layers = sum(weight.nbytes for layer in self.decoder.model.layers for weight in layer.parameters())
        depth = self.transformer
        parts = (*depth.blocks, depth.classifier_mlp)
        of_depth = self.head.codes_per_position * sum(weight.nbytes for part in parts for weight in part.parameters())
        config, weight = self.decoder.config, self.decoder.model.embed_tokens.weight
        slot = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * weight.element_size()
        rows = count * (1 if guidance == 1 else 2)
        keys = rows * slot * (PROMPT_TOKENS + self.positions / 2)
        return self.positions * (layers + of_depth + keys)


PROFILED = 8
"""Positions."""
SAMPLING = ("choose_codes", "search_kernel", "floor_kernel", "argmax_kernel", "final_kernel", "prepare_kernel")


def profile(drawer: Drawer, count: int, guidance: float) -> None:
    """Print what the GPU runs for a position of `count` images."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    engine, settings = drawer.engine, DrawingConfig(guidance=guidance, seed=0)
    prompt = TextPrompt(drawer.decoder, [*range(20, 20 + PROMPT_TOKENS), START])
    handles = [engine.submit(prompt, *picture_request(settings, number)) for number in range(count)]
    for _ in range(drawer.positions // 2):
        engine.step()
    synchronize(drawer.device)
    with record(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            engine.step()
        synchronize(drawer.device)
    for handle in handles:
        handle.cancel()
    print_kernels([event for event in profiler.events() or [] if event.device_type.name == "CUDA"])


def print_kernels(events: list[Any]) -> None:
    """Print kernels in order of their time. A position begins after the last kernel of a choice before a long run."""
    events.sort(key=lambda event: event.time_range.start)
    busy, end, by_part, by_name = 0.0, 0.0, dict[str, list[float]](), dict[tuple[str, str], list[float]]()
    choices = [index for index, event in enumerate(events) if any(name in event.name for name in SAMPLING)]
    attends = [index for index, event in enumerate(events) if "decode_attention" in event.name]
    for index, event in enumerate(events):
        start, stop = event.time_range.start, event.time_range.end
        own = max(0.0, stop - max(start, end))  # kernels that start early overlap the one before
        end, busy = max(end, stop), busy + own
        attend = bisect_left(attends, index)
        # The language model runs from the last choice of a position to its own last attention and the MLP after it.
        is_first = attend < len(attends) and not any(index <= one < attends[attend] for one in choices)
        part = "sampling" if index in choices else "language model" if is_first else "depth transformer and the rest"
        for found in (by_part.setdefault(part, [0, 0.0]), by_name.setdefault((part, event.name[:90]), [0, 0.0])):
            found[0] += 1
            found[1] += own
    total = (events[-1].time_range.end - events[0].time_range.start) if events else 0.0
    print(f"  a position, of {PROFILED}: {total / PROFILED:.0f} us, of which kernels run {busy / PROFILED:.0f} us")
    for part, (number, time_) in sorted(by_part.items()):
        print(f"  {number / PROFILED:8.1f} kernels {time_ / PROFILED:8.1f} us  {part}")
    for (part, name), (number, time_) in sorted(by_name.items(), key=lambda item: -item[1][1])[:40]:
        print(f"  {number / PROFILED:8.1f} x {time_ / number:7.2f} = {time_ / PROFILED:8.1f} us  {part[:8]}  {name}")


def fill(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give a module on the meta device random weights."""
    module.to(dtype).to_empty(device=device)
    for name, weight in module.named_parameters():
        weight.requires_grad = False
        if weight.ndim > 1:
            weight.normal_(0, 0.02)
        else:
            weight.fill_(float(name.endswith("weight")))  # of norms; the others are biases
    module.eval()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="vila-u-7b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true", help="show the kernels of a position")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if options.profile and device.type != "cuda":
        parser.error("--profile needs an NVIDIA GPU")
    limits = measure_limits(device, dtype)
    drawer = Drawer(options.shapes, device, dtype, 2 * max(options.batch))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}, {options.shapes} in {dtype}, {limits.bytes_per_second / 1e9:,.0f} GB/s")
    records: list[dict[str, object]] = []
    for count in options.batch:
        drawer.draw(count, options.guidance, seed=0)  # captures graphs
        seconds = statistics.median(drawer.draw(count, options.guidance, 1 + one) for one in range(options.rounds))
        limit = drawer.bytes_of_image(count, options.guidance) / limits.bytes_per_second
        print(
            f"{count:3} at once: {seconds:.3f} s, {count / seconds:.2f} images/s, "
            f"{1e3 * seconds / drawer.positions:.2f} ms a position; limit {limit:.3f} s: {seconds / limit:.2f} x"
        )
        if options.profile:
            profile(drawer, count, options.guidance)
        records.append({"batch": count, "seconds": seconds, "limit": limit, "images_per_second": count / seconds})
    if options.json:
        settings = {"device": name, "shapes": options.shapes, "guidance": options.guidance}
        options.json.write_text(json.dumps({**settings, "results": records}, indent=2))


if __name__ == "__main__":
    sys.exit(main())
