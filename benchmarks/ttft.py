"""Time to the first token of NVILA-Lite-8B on a GPU beside the compute and memory limits, and where it goes.

    python benchmarks/ttft.py [--out results/ttft.json] [--plot docs/assets/ttft.svg]

Random bf16 weights of the real shapes: SigLIP-SO400M at 448 pixels, 3 x 3 patches a token, Qwen2-7B. Four things:

- a PIL image of 448 x 448 in, the first token on the host: `Vila.complete` with one new token, wall clock;
- the language model alone on prompts of several lengths, as the engine reads them (short ones in CUDA graphs, long
  ones with fused operators) and with PyTorch's operators;
- the rest of a prompt of which most is known, such as a second question about a video;
- 64 frames of 256 tokens (2 x 2 patches a token): tower, projector and language model, from pixels on the GPU.

Limits are measured in the same run: arithmetic at the rate of a large square bf16 product, weights read once at the
best rate that a kernel reaches. `limit` is the larger of the two for all work together, `by stage` is the sum of the
larger ones of the tower and the language model, which run one after the other. Times are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from random_checkpoint import model_config
from torch import nn
from vision import CONFIG, milliseconds, operations, sustained_operations_per_second
from w4a16 import bytes_per_second, operations_per_second

import vila_core
from vila_core.config import DecoderConfig, PreprocessConfig, ProjectorConfig, VilaConfig
from vila_core.language import fused_prefill
from vila_core.language.decoder import Decoder
from vila_core.language.page_size import PAGE_SIZE
from vila_core.language.paged_cache import PagedCache
from vila_core.language.paged_prefill import NextTokens, prefill_graphs
from vila_core.language.paged_step import paged_step
from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_core.projectors import Projector, build_projector
from vila_core.runtime import Vila
from vila_core.towers.captured import use_fused_tower

GPU = torch.device("cuda")
DTYPE = torch.bfloat16
PROMPT_LENGTHS = (144, 512, 1024, 2048, 4096, 16_384)
REST_LENGTHS = (24, 200)
FRAMES, TOKENS_PER_FRAME = 64, 256
QUESTION = "What is in this picture?"


def lite_config() -> VilaConfig:
    """Return the configuration of NVILA-Lite-8B for pictures that are not tiled."""
    config = model_config("nvila-8b")
    language = config.language_model.model_copy(update={"max_length": 32_768})
    return config.model_copy(
        update={
            "vision_tower": CONFIG.model_copy(update={"select_layer": -2}),
            "dynamic_s2": None,
            "projector": ProjectorConfig(
                name="mlp_downsample_3x3_fix", in_size=CONFIG.hidden_size, out_size=language.hidden_size
            ),
            "preprocess": PreprocessConfig(image_aspect_ratio="resize"),
            "language_model": language,
        }
    )


def fill(module: nn.Module) -> None:
    """Draw weights that keep activations near one; biases are 0, norms 1."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)


def random_model() -> Vila:
    """Return the model on the GPU, with the tokenizer of the embedded one."""
    config = lite_config()
    tiny = vila_core.load("vila-tiny", device="cpu")
    with torch.device("meta"):
        network = VilaModel(config, tiny.tokenizer)
    network = network.to(DTYPE).to_empty(device=GPU).eval().requires_grad_(False)
    fill(network)
    assert isinstance(network.llm, Decoder)
    use_fused_tower(network.vision_tower, DTYPE)
    return Vila(network, tiny.tokenizer, tiny.template, config=config, limits=MediaLimits())


def random_projector(name: str, width: int) -> Projector:
    """Return a projector on the GPU."""
    with GPU:
        projector = build_projector(ProjectorConfig(name=name, in_size=CONFIG.hidden_size, out_size=width)).to(DTYPE)
    fill(projector)
    return projector.eval().requires_grad_(False)


def language_work(decoder: Decoder, tokens: int) -> tuple[float, float]:
    """Return operations and bytes of reading a prompt and of the head for its last token."""
    config: DecoderConfig = decoder.config
    linears = sum(module.weight.numel() for module in decoder.model.modules() if isinstance(module, nn.Linear))
    head = config.vocab_size * config.hidden_size
    attention = 2 * tokens**2 * config.num_attention_heads * config.head_dim * config.num_hidden_layers  # causal
    return 2.0 * tokens * linears + 2.0 * head + attention, 2.0 * (linears + head)


def wall_milliseconds(call: Callable[[], object], repetitions: int = 30) -> float:
    """Return the median wall-clock time of `call`, which ends on the host."""
    for _ in range(3):
        call()
    times: list[float] = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


@contextmanager
def unfused() -> Generator[None]:
    """Let the language model run with PyTorch's operators."""
    with mock.patch.object(fused_prefill, "takes", return_value=False):
        yield


class Reader:
    """Reads prompts as the engine does, into pages of its own."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._num_pages = -(-(max(PROMPT_LENGTHS) + max(REST_LENGTHS)) // PAGE_SIZE)
        self._cache = PagedCache.allocate(decoder.config, self._num_pages, device=GPU, dtype=DTYPE)
        step = paged_step(decoder, self._cache, 1, self._num_pages)
        self._graphs = prefill_graphs(decoder, self._cache, self._num_pages, step)

    def __call__(self, embeds: torch.Tensor, start: int = 0) -> torch.Tensor:
        """`[T, D]` from position `start` on -> the hidden state of the last token, `[1, D]`."""
        pages = list(range(-(-(start + len(embeds)) // PAGE_SIZE)))
        prompts = [NextTokens(embeds, start, pages)]
        if self._graphs is not None and self._graphs.takes(prompts):
            return self._graphs(prompts)
        return self.launched(embeds, start)

    def launched(self, embeds: torch.Tensor, start: int = 0) -> torch.Tensor:
        """The same, kernel by kernel."""
        end = start + len(embeds)
        rows = self._cache.rows(torch.arange(-(-end // PAGE_SIZE), device=GPU)[None]).up_to(end)
        positions = torch.arange(start, end, device=GPU)[None] if start else None
        return self._decoder(embeds[None], positions=positions, cache=rows)[:, -1]


def measure_prefill(decoder: Decoder, reader: Reader, tokens: int, rates: tuple[float, float]) -> dict[str, float]:
    """Measure the language model on one prompt: GPU time, and wall clock with its launches."""
    embeds = torch.randn(tokens, decoder.config.hidden_size, device=GPU, dtype=DTYPE)
    work = language_work(decoder, tokens)
    limit = 1e3 * max(work[0] / rates[0], work[1] / rates[1])

    def read() -> torch.Tensor:
        return decoder.logits(reader(embeds)).argmax(-1)

    row = {"tokens": tokens, "limit_ms": limit, "ours_ms": milliseconds(read), "ours_wall_ms": wall_milliseconds(read)}
    ours = reader(embeds).float()
    with unfused():
        row["unfused_ms"] = milliseconds(lambda: decoder.logits(reader.launched(embeds)).argmax(-1))
        plain = reader.launched(embeds).float()
    row["difference"] = ((ours - plain).norm() / plain.norm()).item()
    return row


def measure_rest(decoder: Decoder, reader: Reader, tokens: int, rates: tuple[float, float]) -> dict[str, float]:
    """Measure the last `tokens` of a prompt whose others are in the cache."""
    known = max(PROMPT_LENGTHS)
    embeds = torch.randn(tokens, decoder.config.hidden_size, device=GPU, dtype=DTYPE)
    reader(torch.randn(known, decoder.config.hidden_size, device=GPU, dtype=DTYPE))
    config, (operations, weights) = decoder.config, language_work(decoder, tokens)
    operations += 4 * tokens * known * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    cached = 4 * known * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    return {
        "tokens": tokens,
        "known": known,
        "limit_ms": 1e3 * max(operations / rates[0], (weights + cached) / rates[1]),
        "ours_wall_ms": wall_milliseconds(lambda: decoder.logits(reader(embeds, known)).argmax(-1)),
        "launched_wall_ms": wall_milliseconds(lambda: decoder.logits(reader.launched(embeds, known)).argmax(-1)),
    }


def measure_image(model: Vila, reader: Reader, rates: tuple[float, float]) -> dict[str, float]:
    """Measure one image and its parts."""
    network, decoder = model.network, model.network.llm
    assert isinstance(decoder, Decoder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (448, 448, 3), np.uint8))
    prompt = [image, QUESTION]
    prepared = model.prepare(prompt)
    batch = network.batch([prepared])
    tokens = len(batch.ids)
    tiles = prepared.media[0].tiles
    pixels = tiles.pixels_on(GPU, DTYPE)
    features = network.features(pixels)
    embeds = network.embed(batch)

    def read() -> torch.Tensor:
        return decoder.logits(reader(embeds)).argmax(-1)

    def first_token() -> None:
        model.engine.clear_cache()
        vars(model).pop("_media", None)  # what was encoded before
        model.complete(prompt, max_new_tokens=1)

    tower = operations(CONFIG) * (CONFIG.num_hidden_layers - 1) / CONFIG.num_hidden_layers
    tower_bytes = sum(parameter.nbytes for parameter in network.vision_tower.parameters())
    language = language_work(decoder, tokens)
    both = max((tower + language[0]) / rates[0], (tower_bytes + language[1]) / rates[1])
    by_stage = max(tower / rates[0], tower_bytes / rates[1]) + max(language[0] / rates[0], language[1] / rates[1])
    return {
        "tokens": tokens,
        "limit_ms": 1e3 * both,
        "limit_by_stage_ms": 1e3 * by_stage,
        "first_token_ms": wall_milliseconds(first_token),
        "prepare_ms": wall_milliseconds(lambda: model.prepare(prompt)),
        "digest_ms": wall_milliseconds(lambda: tiles.digest("image")),
        "upload_ms": wall_milliseconds(lambda: tiles.pixels_on(GPU, DTYPE)),
        "encode_ms": milliseconds(lambda: network.tile_tokens([tiles])),
        "tower_ms": milliseconds(lambda: network.features(pixels)),
        "projector_ms": milliseconds(lambda: network.mm_projector(features)),
        "prefill_ms": milliseconds(read),
        "prefill_launches_ms": launch_milliseconds(read),
    }


def launch_milliseconds(call: Callable[[], object]) -> float:
    """Return how long the host takes to launch the work of `call`."""
    times: list[float] = []
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def measure_video(model: Vila, rates: tuple[float, float]) -> dict[str, float]:
    """Measure 64 frames: all together, and the tower alone."""
    network = model.network
    decoder = network.llm
    assert isinstance(decoder, Decoder)
    width = decoder.config.hidden_size
    projector = random_projector("mlp_downsample_2x2_fix", width)
    pixels = torch.randn(FRAMES, 3, CONFIG.image_size, CONFIG.image_size, device=GPU, dtype=DTYPE)
    tokens = FRAMES * TOKENS_PER_FRAME
    cache = decoder.new_cache(1, tokens)

    def run() -> torch.Tensor:
        embeds = projector(network.features(pixels)).view(1, tokens, width)
        return decoder.logits(decoder(embeds, cache=cache.up_to(tokens))[:, -1]).argmax(-1)

    weights = sum(module.weight.numel() for module in projector.modules() if isinstance(module, nn.Linear))
    work = FRAMES * operations(CONFIG) * (CONFIG.num_hidden_layers - 1) / CONFIG.num_hidden_layers
    work += 2 * tokens * weights + language_work(decoder, tokens)[0]
    return {
        "frames": FRAMES,
        "tokens": tokens,
        "limit_ms": 1e3 * work / rates[0],
        "all_ms": milliseconds(run, 3.0),
        "tower_ms": milliseconds(lambda: network.features(pixels)),
    }


def draw(image: dict[str, float], video: dict[str, float], prefill: Sequence[dict[str, float]], file: Path) -> None:
    """Draw times as multiples of their limits."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "ttft"
    from matplotlib import pyplot as plt

    bars = {"one image,\nfirst token": image["first_token_ms"] / image["limit_ms"]}
    bars |= {f"prompt of\n{int(row['tokens']):,}": row["ours_ms"] / row["limit_ms"] for row in prefill}
    bars["64 frames"] = video["all_ms"] / video["limit_ms"]
    figure, axes = plt.subplots(figsize=(7, 3), constrained_layout=True)
    axes.bar_label(axes.bar(list(bars), list(bars.values()), width=0.6), fmt="%.2f", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("time / limit")
    axes.set_title(f"NVILA-Lite-8B, bf16, {torch.cuda.get_device_name()}", fontsize=10)
    axes.tick_params(labelsize=8)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--plot", type=Path, help="draw the numbers into this .svg or .png")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here")
    torch.manual_seed(0)
    rates = operations_per_second(), bytes_per_second(torch.empty(3 << 28, dtype=torch.int32, device=GPU).random_())
    sustained = sustained_operations_per_second()
    print(
        f"{torch.cuda.get_device_name()}: multiplies {rates[0] / 1e12:.0f} TFLOP/s in bf16 "
        f"({sustained / 1e12:.0f} after some seconds), reads {rates[1] / 1e9:.0f} GB/s; milliseconds"
    )
    model = random_model()
    decoder = model.network.llm
    assert isinstance(decoder, Decoder)
    reader = Reader(decoder)
    image = measure_image(model, reader, rates)
    print("one image: " + ", ".join(f"{name} {value:.2f}" for name, value in image.items()), flush=True)
    prefill = [measure_prefill(decoder, reader, tokens, rates) for tokens in PROMPT_LENGTHS]
    for row in prefill:
        print("prompt: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    rest = [measure_rest(decoder, reader, tokens, rates) for tokens in REST_LENGTHS]
    for row in rest:
        print("rest: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    video = measure_video(model, rates)
    print("64 frames: " + ", ".join(f"{name} {value:.1f}" for name, value in video.items()), flush=True)
    if args.out:
        report = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "vila_core": vila_core.__version__,
            "bf16_operations_per_second": rates[0],
            "sustained_bf16_operations_per_second": sustained,
            "bytes_per_second": rates[1],
            "image": image,
            "prefill": prefill,
            "rest": rest,
            "video": video,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    if args.plot:
        draw(image, video, prefill, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
