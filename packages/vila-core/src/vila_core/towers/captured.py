"""A fused vision tower captured in CUDA graphs: for few tiles, launching its kernels one by one takes longer than they.

N images, P tokens, D width, S side of the image in pixels
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vila_core.ops.module_state import ModuleState
from vila_core.towers.fused import FusableTower, FusedTower, Hidden, fused_refusal
from vila_core.towers.vit import VisionTower
from vila_core.uploads import upload_into

BUCKETS = (1, 2, 3, 4, 6, 8)
"""Numbers of tiles that graphs are captured for. Other numbers up to the last are padded; with more tiles the GPU is
the bottleneck, and kernels are launched one by one."""


@dataclass(frozen=True)
class CapturedTower:
    """Graphs, which run one after the other, with their input and their result."""

    graphs: tuple[torch.cuda.CUDAGraph, ...]
    given: Tensor
    result: Tensor


@dataclass(frozen=True)
class Around:
    """The steps that run in one graph with the tower.

    Attributes:
        pixels: makes `[N, 3, S, S]` of bytes of this shape.
        after: reads the features; None for the features themselves.
        state: of `after`.
    """

    pixels: Callable[[Tensor], Tensor]
    after: nn.Module | None
    state: ModuleState | None

    def is_for(self, pixels: Callable[[Tensor], Tensor], after: nn.Module | None) -> bool:
        """Return whether it has these parts, and `after` is what it was."""
        return self.pixels is pixels and self.after is after and (self.state is None or self.state.is_current())


class GraphTower:
    """Runs a tower fused and, for few tiles, through CUDA graphs (see `VisionTower.use_runner`).

    Args:
        tower: the tower that this is for.
        captures: use graphs.
    """

    def __init__(self, tower: FusableTower, *, captures: bool = True):
        self._tower = tower
        self._captures = captures
        self._fused: FusedTower | None = None
        self._graphs: dict[tuple[int, bool], CapturedTower] = {}  # of how many images, and whether they are bytes
        self._around: Around | None = None
        self._finished = torch.cuda.Event()
        self._lock = threading.Lock()

    def __call__(self, pixels: Tensor) -> Tensor | None:
        """`[N, 3, S, S]` -> `[N, P, D]`; None where the tower's own forward is to run: training, hooks, no images."""
        if torch.is_grad_enabled() or not pixels.is_cuda or not len(pixels) or torch.cuda.is_current_stream_capturing():
            return None
        with self._lock:
            return self._current(lambda fused: self._encode(fused, pixels))

    def encode_bytes(
        self, values: Sequence[Tensor], pixels: Callable[[Tensor], Tensor], after: nn.Module | None
    ) -> Tensor | None:
        """Bytes in the main memory -> what `after` makes of the features, in one graph; see `VisionTower`."""
        count, weight = sum(map(len, values)), next(self._tower.parameters())
        if not self._captures or not 0 < count <= BUCKETS[-1]:
            return None
        if torch.is_grad_enabled() or torch.cuda.is_current_stream_capturing():
            return None
        shape = (self._tower.num_channels, self._tower.config.image_size, self._tower.config.image_size)
        if any(part.shape[1:] != shape for part in values):
            return None  # the tower's forward says what is wrong
        if has_hooks(self._tower) or (after is not None and has_hooks(after)):
            return None
        with self._lock:
            if self._around is None or not self._around.is_for(pixels, after):
                self._around = Around(pixels, after, None if after is None else ModuleState(after))
                self._graphs = {key: graph for key, graph in self._graphs.items() if not key[1]}
            around = self._around
            if not around.is_for(pixels, after):
                return None  # a hook must see a part of `after` run

            def run(fused: FusedTower) -> Tensor | None:
                captured = self._captured(fused, bucket_of(count), shape, weight.device, around)
                return None if captured is None else self._replay(captured, values)

            return self._current(run)

    def _current(self, run: Callable[[FusedTower], Tensor | None]) -> Tensor | None:
        """Return what `run` makes of the fused tower as it is now; None if something watches its layers."""
        result = None if self._fused is None else run(self._fused)
        # Checked while the GPU works: the fused tower keeps its weights alive, so a stale result does no harm.
        if self._fused is not None and self._fused.is_current():
            return result
        self._fused, self._graphs = _fuse(self._tower), {}
        return run(self._fused) if self._fused.is_current() else None

    def _encode(self, fused: FusedTower, pixels: Tensor) -> Tensor:
        bucket = bucket_of(len(pixels)) if self._captures else None
        captured = None
        if bucket is not None:
            captured = self._captured(fused, bucket, pixels.shape[1:], pixels.device, None)
        return fused(pixels) if captured is None else self._replay(captured, [pixels])

    def _captured(
        self, fused: FusedTower, bucket: int | None, shape: Sequence[int], device: torch.device, around: Around | None
    ) -> CapturedTower | None:
        """Return the graph for `bucket` images; None if there is too little memory for it."""
        assert bucket is not None, "few images"
        key = bucket, around is not None
        if key not in self._graphs:
            try:
                self._graphs[key] = capture(fused, (bucket, *shape), device, around)
            except torch.OutOfMemoryError:
                warnings.warn(
                    f"The vision tower runs without a CUDA graph for {bucket} tiles: too little GPU memory is left.",
                    stacklevel=2,
                )
                return None
        return self._graphs[key]

    def _replay(self, captured: CapturedTower, given: Sequence[Tensor]) -> Tensor:
        stream = torch.cuda.current_stream(captured.given.device)
        stream.wait_event(self._finished)  # another stream may still read the buffers
        start = 0
        for part in given:
            target = captured.given[start : start + len(part)]
            if part.is_cuda:
                target.copy_(part)
            else:
                upload_into(target, part)
            start += len(part)
        for graph in captured.graphs:
            graph.replay()
        result = captured.result[:start].clone()
        self._finished.record(stream)
        return result


def bucket_of(count: int) -> int | None:
    """Return the number of images of the graph that encodes `count` of them; None if no graph does."""
    return next((bucket for bucket in BUCKETS if bucket >= count), None)


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling the module calls something else, too."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]


@torch.inference_mode(False)
def _fuse(tower: FusableTower) -> FusedTower:
    return FusedTower(tower)


@torch.inference_mode(False)
@torch.no_grad()
def capture(
    fused: FusedTower, shape: Sequence[int], device: torch.device, around: Around | None = None
) -> CapturedTower:
    """Capture `fused` for pixels of `shape` `[N, 3, S, S]`; with `around`, for bytes, and with what comes after."""

    def begin() -> Hidden:
        return fused.begin(given if around is None else around.pixels(given))

    def finish(hidden: Hidden) -> Tensor:
        features = fused.finish(hidden)
        return features if around is None or around.after is None else around.after(features)

    if around is None:
        given = torch.zeros(*shape, dtype=fused.dtype, device=device)
    else:  # pixel by pixel, as a picture is in the main memory
        count, channels, height, width = shape
        given = torch.zeros(count, height, width, channels, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    # The GPU runs the first graph while the host launches the second.
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        finish(begin())
        stream.synchronize()
        with torch.cuda.graph(first, stream=stream):
            hidden = begin()
        with torch.cuda.graph(second, pool=first.pool(), stream=stream):
            result = finish(hidden)
    torch.cuda.current_stream(device).wait_stream(stream)
    return CapturedTower((first, second), given, result)


def use_fused_tower(tower: VisionTower, dtype: torch.dtype, *, captures: bool = True) -> None:
    """Let a SigLIP or CLIP tower run fused if it is on a GPU; warn if it cannot. Other towers are left as they are.

    Args:
        tower: on its device.
        dtype: of its weights.
        captures: capture it in CUDA graphs for few tiles.
    """
    if not isinstance(tower, FusableTower):
        return
    device = next(tower.parameters()).device
    if device.type != "cuda":
        return
    reason = fused_refusal(tower, device, dtype)
    if reason is None:
        tower.use_runner(GraphTower(tower, captures=captures))
    else:
        warnings.warn(f"The vision tower takes the slower path, without fused kernels: {reason}.", stacklevel=2)
