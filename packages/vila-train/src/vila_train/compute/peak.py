"""Peak operations per second of GPUs' tensor cores, from the data sheets."""

import torch

PEAK_TFLOPS = {
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "GH200": 989.4,
    "B200": 2250.0,
    "B100": 1750.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A10": 125.0,
    "A30": 165.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX PRO 6000": 503.8,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""Dense bfloat16 products with fp32 sums, in 10^12 operations per second, by a part of the name that CUDA reports."""


def peak_flops(device: torch.device) -> float | None:
    """Return the bfloat16 operations per second of the device's data sheet; None for a CPU or an unknown GPU.

    A multiplication and an addition are two operations.
    """
    if device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float | None:
    """Return the peak of the GPU that CUDA calls `name`: that of the longest entry that fits."""
    words = f" {name.replace('-', ' ')} "
    fitting = [part for part in PEAK_TFLOPS if f" {part} " in words]
    if not fitting or " Laptop " in words:  # slower than the card of the same name
        return None
    return PEAK_TFLOPS[max(fitting, key=len)] * 1e12
