"""Questions about images: documents, charts, text, scenes, perception."""

from vila_eval.tasks.images.charts import AI2D, AI2D_NO_MASK, CHARTQA
from vila_eval.tasks.images.choices import SCIENCEQA_FULL, SEEDBENCH, VSTAR
from vila_eval.tasks.images.documents import DOCVQA_TEST, DOCVQA_VAL, INFOVQA_TEST, INFOVQA_VAL
from vila_eval.tasks.images.mmbench import MMBENCH
from vila_eval.tasks.images.mme import MME
from vila_eval.tasks.images.pope import POPE
from vila_eval.tasks.images.scenes import GQA, REALWORLDQA, VIZWIZ_VQA_TEST, VIZWIZ_VQA_VAL, VQAV2_TEST, VQAV2_VAL
from vila_eval.tasks.images.text import OCRBENCH, TEXTVQA, TEXTVQA_TEST, TEXTVQA_VAL

IMAGE_TASKS = (
    *(AI2D, AI2D_NO_MASK, CHARTQA),
    *(DOCVQA_VAL, DOCVQA_TEST, INFOVQA_VAL, INFOVQA_TEST),
    *(TEXTVQA, TEXTVQA_VAL, TEXTVQA_TEST, OCRBENCH),
    *(GQA, REALWORLDQA, VQAV2_VAL, VQAV2_TEST, VIZWIZ_VQA_VAL, VIZWIZ_VQA_TEST),
    *(POPE, MME),
    *(SCIENCEQA_FULL, SEEDBENCH, VSTAR, *MMBENCH),
)
