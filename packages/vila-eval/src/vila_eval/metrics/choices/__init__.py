"""Multiple choice: how each benchmark reads the chosen option from an answer, and how it scores the choice.

One file per benchmark. Each names the published code that it follows and keeps that code's oddities, so that scores are
comparable; the rules therefore differ. A new benchmark should use `general.extract_letter`, which never guesses.

| file | benchmarks |
| --- | --- |
| `scoring.py` | shared: comparing a letter with the reference |
| `parsing.py` | shared: stripping punctuation, finding the last option |
| `general.py`, `letter_grammar.py` | no benchmark's own rules: V*, and new benchmarks |
| `scienceqa.py`, `seedbench.py`, `ai2d.py`, `realworldqa.py`, `pmcvqa.py`, `mmbench.py` | images |
| `mmmu.py`, `mmmu_pro.py`, `mathvista.py` | knowledge; MMMU and MathVista also have open questions |
| `vila.py` | EgoSchema and CinePile, read as VILA's own code does |
| `eventbench.py`, `longvideobench.py`, `mvbench.py`, `nextqa.py`, `perceptiontest.py`, `vnbench.py` | videos |
| `lmms_mcq.py` | lmms-eval's shared reader: MLVU |
| `videomme.py` | Video-MME: its own reader, and its groups |
"""

from vila_eval.metrics.choices.ai2d import LEADING_LETTER
from vila_eval.metrics.choices.eventbench import INITIAL
from vila_eval.metrics.choices.general import MULTIPLE_CHOICE
from vila_eval.metrics.choices.longvideobench import LONGVIDEOBENCH_CHOICE
from vila_eval.metrics.choices.mathvista import MATHVISTA_METRIC
from vila_eval.metrics.choices.mmbench import MMBENCH_METRIC
from vila_eval.metrics.choices.mmmu import MMMU_METRIC
from vila_eval.metrics.choices.mmmu_pro import MMMU_PRO_METRIC
from vila_eval.metrics.choices.nextqa import NEXTQA_CHOICE
from vila_eval.metrics.choices.perceptiontest import PERCEPTIONTEST_CHOICE
from vila_eval.metrics.choices.realworldqa import FLEXIBLE_EXTRACT
from vila_eval.metrics.choices.scienceqa import LLAVA_LETTER
from vila_eval.metrics.choices.seedbench import FIRST_CHARACTER
from vila_eval.metrics.choices.videomme import VIDEO_MME_METRIC
from vila_eval.metrics.choices.vila import VILA_CHOICE
from vila_eval.metrics.choices.vnbench import VNBENCH_METRIC

CHOICE_METRICS = (
    *(MULTIPLE_CHOICE, LEADING_LETTER, LLAVA_LETTER, FIRST_CHARACTER, FLEXIBLE_EXTRACT, MMBENCH_METRIC),
    *(MMMU_METRIC, MMMU_PRO_METRIC, MATHVISTA_METRIC),
    *(INITIAL, VILA_CHOICE, NEXTQA_CHOICE, LONGVIDEOBENCH_CHOICE, PERCEPTIONTEST_CHOICE),
    *(VIDEO_MME_METRIC, VNBENCH_METRIC),
)
"""The metrics that the plugin registers by name. PMC-VQA, MVBench and MLVU carry their own metric objects."""
