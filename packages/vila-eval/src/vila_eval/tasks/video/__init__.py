"""Questions about videos."""

from vila_eval.tasks.video.cinepile import CINEPILE
from vila_eval.tasks.video.egoschema import EGOSCHEMA_TEST, EGOSCHEMA_VAL
from vila_eval.tasks.video.eventbench import EVENTBENCH_VAL
from vila_eval.tasks.video.longvideobench import LONGVIDEOBENCH_TEST_V, LONGVIDEOBENCH_VAL_V
from vila_eval.tasks.video.mlvu import MLVU
from vila_eval.tasks.video.mvbench import MVBENCH
from vila_eval.tasks.video.nextqa import NEXTQA_MC_TEST, NEXTQA_OE_TEST, NEXTQA_OE_VAL
from vila_eval.tasks.video.perceptiontest import PERCEPTIONTEST_VAL_MC
from vila_eval.tasks.video.videomme import VIDEOMME
from vila_eval.tasks.video.vnbench import VNBENCH_VAL
from vila_eval.tasks.video.youcook2 import YOUCOOK2_VAL

VIDEO_TASKS = (
    *(
        EGOSCHEMA_VAL,
        EGOSCHEMA_TEST,
        EVENTBENCH_VAL,
        VNBENCH_VAL,
        CINEPILE,
        MVBENCH,
        NEXTQA_MC_TEST,
        NEXTQA_OE_VAL,
        NEXTQA_OE_TEST,
    ),
    *(PERCEPTIONTEST_VAL_MC, LONGVIDEOBENCH_VAL_V, LONGVIDEOBENCH_TEST_V, *VIDEOMME, MLVU, YOUCOOK2_VAL),
)
