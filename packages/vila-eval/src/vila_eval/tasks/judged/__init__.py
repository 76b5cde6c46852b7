"""Open answers scored by a judge. Without a judge, the answers are kept for later scoring."""

from vila_eval.tasks.judged.activitynet_qa import ACTIVITYNETQA
from vila_eval.tasks.judged.llava_bench import LLAVA_IN_THE_WILD
from vila_eval.tasks.judged.mm_vet import MMVET
from vila_eval.tasks.judged.video_chatgpt import VIDEOCHATGPT

JUDGED_TASKS = (ACTIVITYNETQA, VIDEOCHATGPT, LLAVA_IN_THE_WILD, MMVET)
