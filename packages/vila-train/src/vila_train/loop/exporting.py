"""Writes the trained model in a format that everything else reads."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vila_core.checkpoint import save_checkpoint
from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.checkpoint.fingerprints import weight_fingerprints
from vila_core.checkpoint.new_folder import require_new
from vila_core.device_choice import DTYPES
from vila_core.errors import CheckpointError, ConfigError
from vila_core.model import VilaModel
from vila_train.base_model import fingerprint_base, require_same_base
from vila_train.checkpoint_state import Progress
from vila_train.checkpoints import Checkpoints, parameter_name
from vila_train.config import AdapterConfig, ComputeConfig, TrainConfig
from vila_train.errors import TrainingError
from vila_train.loop.setup import adapt
from vila_train.models import OpenedModel, open_model
from vila_train.parallel.world import World
from vila_train.run_folder import RunFolder, read_config


def export(
    run: Path,
    out: Path,
    *,
    format: str | None = None,
    dtype: str | None = None,
    adapter_only: bool = False,
    accept_changes: bool = False,
) -> Path:
    """Write the newest checkpoint of a run, complete or not, as a model to the new folder `out`. Return `out`.

    What adapters have learned is merged into the weights.

    Args:
        run: folder of the run.
        out: a folder that does not exist yet.
        format: a registered format that can be written, such as "vila" or "nvila"; None: "vila-u" for a model that
            draws, else "vila".
        dtype: "bfloat16", "float32" or "float16"; None: as in the checkpoint that training started from.
        adapter_only: write only what was trained, in peft's format, which names the model that training started from.
        accept_changes: combine what was trained with the model at that path even if it is not the one that training
            started from.

    Raises:
        ConfigError: `run` is not the folder of a run or has no adapter to write, the dtype is unknown, the model that
            training started from has changed, or `out` is where a run that is not complete writes its model.
        TrainingError: it has no intact checkpoint.
        CheckpointError: the model that training started from is missing, or `out` is not empty or cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"Unknown dtype '{dtype}'. Known: {', '.join(DTYPES)}.")
    config = in_full_precision(read_config(run))
    if adapter_only:
        _require_adapter(config, run)
    require_new(out)
    world = World(0, 1, torch.device("cpu"))
    checkpoints = Checkpoints(RunFolder(run).checkpoints, config.saving.keep, world)
    found = _newest(checkpoints, run)
    _require_other_folder(RunFolder(run), out, found[1].step)
    try:
        if found[1].base is not None and not accept_changes:
            advice = "combine it with the present ones (--accept-changes)"
            require_same_base(config.model, found[1].base, fingerprint_base(config.model), advice)
        opened = open_model(config.model, config.seed)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} {run} started from this model, and saved only what it trained: put it, or a link to it, back."
        ) from error
    adapt(opened.network, config)
    _load(checkpoints, found, opened.network, run)
    if adapter_only:
        _write_adapter(opened, config, out)
        return out
    export_model(opened, out, world, adapter=config.adapter, format=format, dtype=dtype)
    return out


def _require_other_folder(run: RunFolder, out: Path, step: int) -> None:
    """Raise `ConfigError` for the model of the run itself, before its last step: it would count as complete."""
    if out.resolve() == run.model.resolve() and run.plan is not None and step < run.plan.total_steps:
        raise ConfigError(
            f"{out} is where the run writes its model at its end, and it has done {step:,} of "
            f"{run.plan.total_steps:,} steps: with a model there it would count as complete. Choose another folder."
        )


def _newest(checkpoints: Checkpoints, run: Path) -> tuple[Path, Progress]:
    if (found := checkpoints.newest()) is None:
        raise TrainingError(f"{run} has no checkpoint yet. Run it longer, or lower saving.every.")
    return found


def _load(checkpoints: Checkpoints, found: tuple[Path, Progress], network: nn.Module, run: Path) -> None:
    """Fill the trained weights from the checkpoint `found`, or from the next one if a run at work deletes it."""
    while True:
        try:
            checkpoints.load_weights(found[0], network)
            return
        except (TrainingError, OSError):
            if checkpoints.complete()[-1:] == [found[0]]:
                raise
        found = _newest(checkpoints, run)


def _require_adapter(config: TrainConfig, run: Path) -> None:
    if config.adapter is None:
        raise ConfigError(f"{run} trained no adapter. Export its model: leave out --adapter.")
    if config.model.new is not None or config.model.num_time_tokens:
        raise ConfigError(f"The model that {run} started from was made for it. Export the whole model: no --adapter.")


def _write_adapter(opened: OpenedModel, config: TrainConfig, out: Path) -> None:
    from vila_train.adapters import save_adapter

    assert config.adapter is not None
    base = config.model.path or EMBEDDED_MODEL
    files = None if opened.base is None or opened.base.adapter is not None else weight_fingerprints(opened.base)
    save_adapter(opened.network, config.adapter, base, out, base_files=files)


def has_rounded_weights(network: VilaModel, config: TrainConfig) -> bool:
    """Return whether frozen weights are less exact in training than in the checkpoint that it started from.

    They are in 4 bits (QLoRA), or in bf16 where the checkpoint has fp32 or fp16.
    """
    if config.adapter is not None and config.adapter.method == "qlora":
        return True
    is_rounded = config.compute.precision == "bf16" and network.config.dtype != "bfloat16"
    return is_rounded and not all(parameter.requires_grad for parameter in network.parameters())


def in_full_precision(config: TrainConfig) -> TrainConfig:
    """Return `config` for the same weights on a CPU: the weights under adapters are not quantized."""
    adapter = config.adapter
    if adapter is not None and adapter.method == "qlora":
        adapter = adapter.model_copy(update={"method": "lora"})
    compute = ComputeConfig(precision="fp32", activation_checkpointing="none")
    return config.model_copy(update={"adapter": adapter, "compute": compute})


def export_model(
    opened: OpenedModel,
    out: Path,
    world: World,
    *,
    adapter: AdapterConfig | None = None,
    format: str | None = None,
    dtype: str | None = None,
) -> None:
    """Write the model to the new folder `out`, completely or not at all. All ranks call this.

    Args:
        opened: with the trained network.
        out: a folder that does not exist yet.
        world: rank 0 writes; the others give it their shards.
        adapter: that the network has.
        format: as for `export`.
        dtype: as for `export`.

    Raises:
        CheckpointError: it cannot be written.
    """
    stored = DTYPES[dtype or opened.network.config.dtype]
    format = format or ("vila" if opened.network.generation is None else "vila-u")
    weights = gather_weights(opened.network, None if adapter else stored, world)
    world.first(lambda: _write(opened, weights, out, stored, adapter, format))


def _write(
    opened: OpenedModel,
    weights: Mapping[str, Tensor],
    out: Path,
    stored: torch.dtype,
    adapter: AdapterConfig | None,
    format: str,
) -> None:
    if adapter is not None and adapter.method != "norms":
        from vila_train.adapters import merged_tensors

        weights = merged_tensors(opened.network, weights)
    save_checkpoint(
        weights, opened.network.config, opened.tokenizer_path, out, format=format, base=opened.base, dtype=stored
    )


def gather_weights(network: nn.Module, dtype: torch.dtype | None, world: World) -> dict[str, Tensor]:
    """Return all weights in main memory on rank 0, one gathered at a time; nothing on other ranks.

    Args:
        network: in shards or not.
        dtype: they are rounded to it as they arrive; None keeps them.
        world: all ranks call this.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world.is_first:
            weights[parameter_name(name)] = whole.to(device="cpu", dtype=dtype if whole.is_floating_point() else None)
    return weights
