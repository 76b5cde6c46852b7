"""Metrics: pure functions (an answer and what was expected in, a score out), and the metric objects that tasks name.

`ALL` is what the plugin registers.
"""

from vila_eval.metrics.anls import ANLS
from vila_eval.metrics.boxes import BOX_ACCURACY
from vila_eval.metrics.captions import CAPTIONS
from vila_eval.metrics.counting import COUNTING
from vila_eval.metrics.exact_match import EXACT_MATCH, FLEXIBLE_EXTRACT, LEADING_LETTER, NORMALIZED_EXACT_MATCH
from vila_eval.metrics.judged_images import LLAVA_BENCH, MM_VET
from vila_eval.metrics.judged_videos import ACTIVITYNET_QA, VIDEO_CHATGPT
from vila_eval.metrics.letter_readers import (
    INITIAL,
    LONGVIDEOBENCH_CHOICE,
    NEXTQA_CHOICE,
    PERCEPTIONTEST_CHOICE,
    VILA_CHOICE,
)
from vila_eval.metrics.mathvista import MATHVISTA_METRIC
from vila_eval.metrics.mmbench import MMBENCH_METRIC
from vila_eval.metrics.mmmu import MMMU_METRIC
from vila_eval.metrics.multiple_choice import FIRST_CHARACTER, LLAVA_LETTER, MULTIPLE_CHOICE
from vila_eval.metrics.ocrbench import OCRBENCH_METRIC
from vila_eval.metrics.relaxed_accuracy import CHARTQA, RELAXED_ACCURACY, STRICT_RELAXED_ACCURACY
from vila_eval.metrics.video_mme import VIDEO_MME_METRIC
from vila_eval.metrics.vnbench import VNBENCH_METRIC
from vila_eval.metrics.vqa import EVALAI_VQA_ACCURACY, VQA_ACCURACY
from vila_eval.metrics.word_overlap import WORD_OVERLAP
from vila_eval.metrics.wups import WUPS
from vila_eval.metrics.yes_no import MME_METRIC, POPE_METRIC

ALL = (
    *(EXACT_MATCH, NORMALIZED_EXACT_MATCH, FLEXIBLE_EXTRACT),
    *(MULTIPLE_CHOICE, LEADING_LETTER, LLAVA_LETTER, FIRST_CHARACTER, MMBENCH_METRIC),
    *(POPE_METRIC, MME_METRIC),
    *(VQA_ACCURACY, EVALAI_VQA_ACCURACY, ANLS, RELAXED_ACCURACY, STRICT_RELAXED_ACCURACY, CHARTQA, OCRBENCH_METRIC),
    *(MMMU_METRIC, MATHVISTA_METRIC, BOX_ACCURACY, COUNTING, WORD_OVERLAP),
    *(INITIAL, VILA_CHOICE, NEXTQA_CHOICE, LONGVIDEOBENCH_CHOICE, PERCEPTIONTEST_CHOICE),
    *(VIDEO_MME_METRIC, VNBENCH_METRIC, WUPS, CAPTIONS),
    *(ACTIVITYNET_QA, VIDEO_CHATGPT, LLAVA_BENCH, MM_VET),
)
