"""Chooses the device and dtype of a model."""

import torch

from vila_core.config import VilaConfig
from vila_core.errors import ConfigError, shown, unknown_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_ALIASES = {
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "single": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
}
SMALL_MODEL = 1_000_000_000
"""With fewer parameters, `dtype="auto"` means float32 on a CPU, where half precision is not faster."""


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device to load the model on, a GPU with its number.

    PyTorch takes `cuda` and `cuda:0` for different devices, even where they are one, and tensors only say `cuda:0`.

    Raises:
        ConfigError: the device is unknown or not on this machine.
    """
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        name = device if isinstance(device, str | int) else str(device)
        raise ConfigError(f"Unknown device {shown(name)}. Use auto, cpu, cuda or cuda:N.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"Device '{device}' is not on this machine ({torch.cuda.device_count()} CUDA devices). "
            "Run `vila doctor` to see why."
        )
    if str(chosen) == "cuda":
        # Asking for the current device initializes CUDA, after which processes cannot be forked.
        return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)
    return chosen


def choose_dtype(
    dtype: str | torch.dtype | None, config: VilaConfig, parameters: int, device: torch.device
) -> torch.dtype:
    """Return the dtype to load the weights in, for a model with `parameters` parameters.

    Raises:
        ConfigError: `dtype` is not float32, bfloat16 or float16.
    """
    if dtype is None or dtype == "auto":
        return torch.float32 if device.type == "cpu" and parameters < SMALL_MODEL else DTYPES[config.dtype]
    name = str(dtype).lower().removeprefix("torch.")
    name = DTYPE_ALIASES.get(name, name)
    if name not in DTYPES:
        raise ConfigError(unknown_name("dtype", name, [*DTYPES, "auto"]))
    return DTYPES[name]
