"""How well pictures survive their codes: PSNR, SSIM, and how many of the codes are used at each depth."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vila_eval.metric import Measure, Score, Scored
from vila_eval.statistics import Estimate, estimate
from vila_eval.task import Question


@dataclass(frozen=True)
class ReconstructionMetric:
    """Reads answers of `tasks.reconstruction`: JSON with `psnr`, `ssim`, `codebook_size` and `codes` `[P, D]`.

    PSNR and SSIM are means over pictures. The use of codes is counted over all pictures together: the number of
    different codes at each depth, and the perplexity, which is how many codes used equally often would be as diverse.
    """

    name: str = "reconstruction"

    def score(self, answer: str, question: Question) -> Score:
        """Return PSNR in dB and SSIM. A picture that failed scores 0."""
        values = _read(answer)
        if values is None:
            return Score({"psnr": 0.0, "ssim": 0.0}, unread="no picture")
        return Score({"psnr": float(values["psnr"]), "ssim": float(values["ssim"])})

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        """Return PSNR and SSIM, and for each depth the different codes and their perplexity."""
        measures = [
            Measure(name, estimate([sample.score.values[name] for sample in samples]), unit="points")
            for name in ("psnr", "ssim")
        ]
        answers = [values for sample in samples if (values := _read(sample.answer)) is not None]
        if not answers:
            return measures
        import numpy as np

        from vila_core.generation.reconstruction import code_usage

        codes = np.concatenate([np.asarray(values["codes"], dtype=np.int64) for values in answers])
        for depth, usage in enumerate(code_usage(codes, int(answers[0]["codebook_size"]))):
            for name, value in (("codes used", float(usage.used)), ("perplexity", usage.perplexity)):
                counted = Estimate(value, math.nan, len(answers))
                measures.append(Measure(name, counted, unit="points", group=("depth", str(depth))))
        return measures


def _read(answer: str) -> dict[str, Any] | None:
    try:
        values: Any = json.loads(answer)
    except ValueError:
        return None
    return values if isinstance(values, dict) and {"psnr", "ssim", "codes", "codebook_size"} <= values.keys() else None


RECONSTRUCTION = ReconstructionMetric()
