"""A fused vision tower captured in CUDA graphs: for few tiles, launching its kernels one by one takes longer than they.

N images, P tokens, D width, S side of the image in pixels
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.towers.fused import FusableTower, FusedTower, fused_refusal
from vila_core.towers.vit import VisionTower

BUCKETS = (1, 2, 3, 4, 6, 8)
"""Numbers of tiles that graphs are captured for. Other numbers up to the last are padded; with more tiles the GPU is
the bottleneck, and kernels are launched one by one."""


@dataclass(frozen=True)
class CapturedTower:
    """A graph with its input and its result."""

    graph: torch.cuda.CUDAGraph
    pixels: Tensor
    features: Tensor


class GraphTower:
    """Runs a tower fused and, for few tiles, through CUDA graphs (see `VisionTower.use_runner`).

    Args:
        tower: the tower that this is for.
    """

    def __init__(self, tower: FusableTower):
        self._tower = tower
        self._fused: FusedTower | None = None
        self._graphs: dict[int, CapturedTower] = {}
        self._finished = torch.cuda.Event()
        self._lock = threading.Lock()

    def __call__(self, pixels: Tensor) -> Tensor | None:
        """`[N, 3, S, S]` -> `[N, P, D]`; None where the tower's own forward is to run: training, hooks, no images."""
        if torch.is_grad_enabled() or not pixels.is_cuda or not len(pixels) or torch.cuda.is_current_stream_capturing():
            return None
        with self._lock:
            features = self._encode(pixels)
            # Checked while the GPU works: the fused tower keeps its weights alive, so a stale result does no harm.
            if self._fused is not None and self._fused.is_current():
                return features
            self._fused, self._graphs = _fuse(self._tower), {}
            return self._encode(pixels) if self._fused.is_current() else None  # None: something watches the layers

    def _encode(self, pixels: Tensor) -> Tensor | None:
        if self._fused is None:
            return None
        bucket = next((bucket for bucket in BUCKETS if bucket >= len(pixels)), None)
        captured = None if bucket is None else self._captured(self._fused, bucket, pixels)
        return self._fused(pixels) if captured is None else self._replay(captured, pixels)

    def _captured(self, fused: FusedTower, bucket: int, pixels: Tensor) -> CapturedTower | None:
        """Return the graph for `bucket` images; None if there is too little memory for it."""
        if bucket not in self._graphs:
            try:
                self._graphs[bucket] = capture(fused, (bucket, *pixels.shape[1:]), pixels.device)
            except torch.OutOfMemoryError:
                warnings.warn(
                    f"The vision tower runs without a CUDA graph for {bucket} tiles: too little GPU memory is left.",
                    stacklevel=2,
                )
                return None
        return self._graphs[bucket]

    def _replay(self, captured: CapturedTower, pixels: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(pixels.device)
        stream.wait_event(self._finished)  # another stream may still read the buffers
        captured.pixels[: len(pixels)].copy_(pixels)
        captured.graph.replay()
        features = captured.features[: len(pixels)].clone()
        self._finished.record(stream)
        return features


@torch.inference_mode(False)
def _fuse(tower: FusableTower) -> FusedTower:
    return FusedTower(tower)


@torch.inference_mode(False)
@torch.no_grad()
def capture(fused: FusedTower, shape: Sequence[int], device: torch.device) -> CapturedTower:
    """Capture `fused` for pixels of `shape` `[N, 3, S, S]`."""
    pixels = torch.zeros(*shape, dtype=fused.dtype, device=device)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        fused(pixels)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            features = fused(pixels)
    torch.cuda.current_stream(device).wait_stream(stream)
    return CapturedTower(graph, pixels, features)


def use_fused_tower(tower: VisionTower, dtype: torch.dtype) -> None:
    """Let a SigLIP or CLIP tower run fused if it is on a GPU; warn if it cannot. Other towers are left as they are."""
    if not isinstance(tower, FusableTower):
        return
    device = next(tower.parameters()).device
    if device.type != "cuda":
        return
    reason = fused_refusal(tower, device, dtype)
    if reason is None:
        tower.use_runner(GraphTower(tower))
    else:
        warnings.warn(f"The vision tower takes the slower path, without fused kernels: {reason}.", stacklevel=2)
