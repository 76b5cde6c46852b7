"""Measure loading and generation at full size, against the limit and against transformers, in one run.

    python benchmarks/load_and_generate.py nvila-8b [--folder DIR] [--new-tokens 128] [--out results.json]

Claims, on a GPU: loading takes at most 1.5 times as long as reading the files, host memory never holds two shards, and
`generate` is no slower than transformers. The script exits with 1 if a claim does not hold.

It writes a checkpoint of random weights (16 GB for nvila-8b) to DIR if there is none, and prints
- loading: seconds, divided by the time to read the files (page cache warm for both), and peak host memory against the
  largest shard;
- generation at batch 1, bf16, 300 tokens of context: tokens per second of ours and of transformers' `generate` with the
  same weights, and the limit (reading all weights of the language model once per token, at the bandwidth of a copy in
  this run).
"""

import argparse
import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from random_checkpoint import NAMES, write_random_checkpoint

import vila_core as vila
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EmbeddedPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.sampling import GenerationConfig

CONTEXT = 300


def read_all(folder: Path) -> int:
    """Read every weight file once; return the bytes."""
    buffer, total = bytearray(64 * 1024**2), 0
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                total += count
    return total


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


class PeakMemory:
    """The peak of this process's own memory, pinned buffers included and page cache left out, sampled every 5 ms."""

    def __enter__(self) -> "PeakMemory":
        self.start = self.peak = self._now()
        self._running = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            self.peak = max(self.peak, self._now())
            time.sleep(0.005)

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text()
        return sum(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem"))
        )


def bandwidth() -> float:
    """Bytes a second that a copy on the device reads and writes; on a CPU, of a large copy in memory."""
    size = 4 * 1024**3 if torch.cuda.is_available() else 512 * 1024**2
    source = torch.empty(size, dtype=torch.uint8, device="cuda" if torch.cuda.is_available() else "cpu")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * size / min(seconds(lambda: target.copy_(source)) for _ in range(5))


def transformers_model(model: vila.Vila) -> torch.nn.Module:
    """Return transformers' Qwen2 holding the very tensors of our language model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    decoder = model.config.language_model
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    config = Qwen2Config(
        **{name: getattr(decoder, name) for name in names}, max_position_embeddings=32768, tie_word_embeddings=False
    )
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
    with torch.device("meta"):
        other = Qwen2ForCausalLM(config)
    other.load_state_dict(model.network.llm.state_dict(), assign=True)
    other.model.rotary_emb = type(other.model.rotary_emb)(config).to(model.device)
    return other.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "vila-random")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder, device = args.folder / args.name, "cuda" if torch.cuda.is_available() else "cpu"
    if not folder.exists():
        print(f"writing {folder} …", flush=True)
        write_random_checkpoint(args.name, folder)
    torch.ones(1, device=device).sum().item()  # the device is awake before anything is timed

    vila.load(device=device, dtype="bfloat16")  # everything is imported before anything is timed
    read_all(folder)
    reading = min(seconds(lambda: read_all(folder)) for _ in range(2))
    size, shard = read_all(folder), max(file.stat().st_size for file in folder.rglob("*.safetensors"))
    with PeakMemory() as memory:
        started = time.perf_counter()
        model = vila.load(folder, device=device, dtype="bfloat16")
        if device == "cuda":
            torch.cuda.synchronize()
        loading = time.perf_counter() - started
    print(f"read {reading:.2f} s, loaded {loading:.2f} s", flush=True)

    llm, decoder = model.network.llm, model.config.language_model
    generator = torch.Generator(device).manual_seed(0)
    embeds = torch.randn(CONTEXT, decoder.hidden_size, dtype=torch.bfloat16, device=device, generator=generator) * 0.02
    settings = GenerationConfig(max_new_tokens=args.new_tokens)
    other = transformers_model(model)
    kwargs = {
        "max_new_tokens": args.new_tokens,
        "min_new_tokens": args.new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }
    mask = torch.ones(1, CONTEXT, dtype=torch.long, device=device)
    with torch.inference_mode():
        engine = Engine(llm, model.tokenizer, frozenset(), EngineConfig(max_batch=1))
        ours = lambda: engine.answer_all([EmbeddedPrompt(embeds)], settings)  # noqa: E731
        theirs = lambda: other.generate(inputs_embeds=embeds[None], attention_mask=mask, **kwargs)  # noqa: E731
        got, want = ours()[0].token_ids, theirs()[0].tolist()
        our_seconds = min(seconds(ours) for _ in range(3))
        their_seconds = min(seconds(theirs) for _ in range(3))
    weights = sum(parameter.nbytes for name, parameter in llm.named_parameters() if "embed_tokens" not in name)
    floor = weights / bandwidth()
    report = {
        "model": args.name,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "vila_core": vila.__version__,
        "checkpoint_GB": size / 1e9,
        "read_s": reading,
        "load_s": loading,
        "load_over_read": loading / reading,
        "host_peak_over_largest_shard": (memory.peak - memory.start - (size if device == "cpu" else 0)) / shard,
        "max_rss_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "tokens_per_s": args.new_tokens / our_seconds,
        "transformers_tokens_per_s": args.new_tokens / their_seconds,
        "ours_over_transformers": their_seconds / our_seconds,
        "floor_tokens_per_s": 1 / floor,
        "same_leading_tokens": next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), len(want)),
    }
    for key, value in report.items():
        print(f"{key:30} {value:.3f}" if isinstance(value, float) else f"{key:30} {value}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=2))
    if device == "cuda":  # the claims are made for a GPU
        held = (
            report["load_over_read"] <= 1.5
            and report["host_peak_over_largest_shard"] <= 2
            and report["ours_over_transformers"] >= 1
        )
        sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
