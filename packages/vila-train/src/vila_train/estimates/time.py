"""Estimate of the duration of a run, from the operations of its rows."""

from collections.abc import Mapping

from vila_train.compute.peak import named_peak

ASSUMED_MFU = 0.4
"""Share of a GPU's peak that training reaches; 0.33 to 0.45 are published for models of this size."""
GPUS = ("H100", "A100", "L40S", "RTX 4090")


def hours_by_gpu(flops: float, gpus: int = 1) -> Mapping[str, float]:
    """Return the hours that `flops` operations take on each kind of GPU, with `gpus` of them."""
    peaks = {name: named_peak(name) for name in GPUS}
    return {name: flops / (peak * ASSUMED_MFU * gpus) / 3600 for name, peak in peaks.items() if peak is not None}
