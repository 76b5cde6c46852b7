"""The loop on a GPU: bf16 on sharded fp32 weights, pinned rows from loading processes, and resuming."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.loop_runs import Mixed, Recorder, micro_config

import vila_core as vila
from vila_train.compute.fp8 import fp8_refusal
from vila_train.loop import train

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]


def losses(checkpoint: Path, out: Path, **changes: Any) -> dict[int, float]:
    recorder = Recorder()
    train(micro_config(checkpoint, **changes), out, [recorder], order=Mixed(), device="cuda")
    return recorder.losses


@pytest.mark.parametrize(
    "changes",
    [
        {"compute.precision": "fp32"},
        {"compute.precision": "bf16", "data.workers": 2, "compute.activation_checkpointing": "full"},
        {"compute.precision": "bf16", "compute.activation_checkpointing": "linears"},
        {
            "compute.precision": "bf16",
            "adapter": {"method": "lora", "rank": 2},
            "tune": ("projector", "language_model"),
        },
        {"compute.precision": "bf16", "compute.sharded": True, "adapter": {"method": "lora", "rank": 2}},
        {"compute.precision": "bf16", "compute.sharded": False, "adapter": {"method": "dora", "rank": 2}},
        {"compute.precision": "bf16", "compute.sharded": True, "compute.keep_gathered": True},
        {
            "compute.precision": "bf16",
            "compute.fp8": True,
            "compute.activation_checkpointing": "linears",
            "adapter": {"method": "lora", "rank": 2, "dropout": 0.0},
        },
        *(
            {
                "compute.precision": "bf16",
                "compute.compile": True,
                "compute.fp8": fp8,
                "adapter": {"method": "lora", "rank": 2, "dropout": 0.0},
            }
            for fp8 in (False, True)
        ),
    ],
    ids=[
        "fp32",
        "bf16-workers",
        "linears",
        "lora",
        "lora-sharded",
        "dora",
        "gathered",
        "lora-fp8",
        "by-hand",
        "by-hand-fp8",
    ],
)
def test_a_gpu_gives_the_losses_of_a_cpu(micro_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]):
    if changes.get("compute.fp8") and (reason := fp8_refusal(torch.device("cuda"))):
        pytest.skip(reason)
    on_cpu = {key: value for key, value in changes.items() if key == "adapter"}
    recorder = Recorder()
    train(micro_config(micro_checkpoint, **on_cpu), tmp_path / "cpu", [recorder], order=Mixed(), device="cpu")
    found = losses(micro_checkpoint, tmp_path / "gpu", **changes)
    tolerance = 1e-3 if changes["compute.precision"] == "fp32" else 0.05
    assert all(math.isclose(found[step], loss, abs_tol=tolerance) for step, loss in recorder.losses.items())
    assert isinstance(vila.load(tmp_path / "gpu/model", device="cuda").generate("red?", max_new_tokens=2), str)


def test_a_run_on_a_gpu_is_resumed(micro_checkpoint: Path, tmp_path: Path):
    """Atomic additions on a GPU are not bit-equal; the moments of AdamW matter much more."""
    changes = {"compute.precision": "bf16", "data.workers": 2}
    whole = losses(micro_checkpoint, tmp_path / "whole", **changes)

    class StopAfterFour(Recorder):
        def on_checkpoint(self, step: int, folder: Path) -> None:
            if step == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            micro_config(micro_checkpoint, **changes), tmp_path / "run", [StopAfterFour()], order=Mixed(), device="cuda"
        )
    again = losses(micro_checkpoint, tmp_path / "run", **changes)
    assert again.keys() == {5, 6}
    assert all(math.isclose(again[step], whole[step], abs_tol=5e-3) for step in again)
