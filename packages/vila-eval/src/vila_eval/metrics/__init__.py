"""Metrics: pure functions from an answer and its reference to a score, and the metric objects that tasks name.

The plugin registers `ALL`.
"""

from vila_eval.metrics.anls import ANLS
from vila_eval.metrics.boxes import BOX_ACCURACY
from vila_eval.metrics.captions import CAPTIONS
from vila_eval.metrics.choices import CHOICE_METRICS
from vila_eval.metrics.counting import COUNTING
from vila_eval.metrics.drawn_attributes import DRAWN_ATTRIBUTES
from vila_eval.metrics.exact_match import EXACT_MATCH, NORMALIZED_EXACT_MATCH
from vila_eval.metrics.judged_images import LLAVA_BENCH, MM_VET
from vila_eval.metrics.judged_videos import ACTIVITYNET_QA, VIDEO_CHATGPT
from vila_eval.metrics.ocrbench import OCRBENCH_METRIC
from vila_eval.metrics.reconstruction import RECONSTRUCTION
from vila_eval.metrics.relaxed_accuracy import CHARTQA, RELAXED_ACCURACY, STRICT_RELAXED_ACCURACY
from vila_eval.metrics.vqa import EVALAI_VQA_ACCURACY, VQA_ACCURACY
from vila_eval.metrics.word_overlap import WORD_OVERLAP
from vila_eval.metrics.wups import WUPS
from vila_eval.metrics.yes_no import MME_METRIC, POPE_METRIC

ALL = (
    *(EXACT_MATCH, NORMALIZED_EXACT_MATCH, POPE_METRIC, MME_METRIC),
    *CHOICE_METRICS,
    *(VQA_ACCURACY, EVALAI_VQA_ACCURACY, ANLS, RELAXED_ACCURACY, STRICT_RELAXED_ACCURACY, CHARTQA, OCRBENCH_METRIC),
    *(BOX_ACCURACY, COUNTING, WORD_OVERLAP, WUPS, CAPTIONS),
    *(ACTIVITYNET_QA, VIDEO_CHATGPT, LLAVA_BENCH, MM_VET),
    *(RECONSTRUCTION, DRAWN_ATTRIBUTES),
)
