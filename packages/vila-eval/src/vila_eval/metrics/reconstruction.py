"""Quality of reconstructed images: PSNR, SSIM, and the use of the codebook at each depth."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vila_eval.metric import Measure, Score, Scored
from vila_eval.statistics import Estimate, estimate
from vila_eval.task import Question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ReconstructionMetric:
    """Reads answers of `tasks.reconstruction`: JSON with `psnr`, `ssim`, `codebook_size` and `codes` `[P, D]`.

    PSNR and SSIM are means over pictures. The use of codes is counted over all pictures together: the number of
    different codes at each depth, and the perplexity, which is how many codes used equally often would be as diverse.
    """

    name: str = "reconstruction"

    def score(self, answer: str, question: Question) -> Score:
        """Return PSNR in dB and SSIM. A picture that failed scores 0."""
        picture = _read(answer)
        if picture is None:
            return Score({"psnr": 0.0, "ssim": 0.0}, unread="no picture")
        return Score({"psnr": picture.psnr, "ssim": picture.ssim})

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        """Return PSNR and SSIM, and for each depth the different codes and their perplexity."""
        measures = [
            Measure(name, estimate([sample.score.values[name] for sample in samples]), unit="points")
            for name in ("psnr", "ssim")
        ]
        pictures = [picture for sample in samples if (picture := _read(sample.answer)) is not None]
        if not pictures:
            return measures
        import numpy as np

        from vila_core.generation.reconstruction import code_usage

        codes = np.concatenate([picture.codes for picture in pictures])
        for depth, usage in enumerate(code_usage(codes, pictures[0].codebook_size)):
            for name, value in (("codes used", float(usage.used)), ("perplexity", usage.perplexity)):
                counted = Estimate(value, math.nan, len(pictures))
                measures.append(Measure(name, counted, unit="points", group=("depth", str(depth))))
        return measures


@dataclass(frozen=True)
class _Picture:
    psnr: float
    ssim: float
    codes: "NDArray[np.int64]"  # [P, D]
    codebook_size: int


def _read(answer: str) -> _Picture | None:
    import numpy as np

    try:
        values: Any = json.loads(answer)
        psnr, ssim, codebook_size = float(values["psnr"]), float(values["ssim"]), int(values["codebook_size"])
        codes = np.asarray(values["codes"], dtype=np.int64)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
        return None
    valid = codes.ndim == 2 and codes.size and codes.min() >= 0 and codes.max() < codebook_size
    return _Picture(psnr, ssim, codes, codebook_size) if valid and math.isfinite(psnr) and math.isfinite(ssim) else None


RECONSTRUCTION = ReconstructionMetric()
