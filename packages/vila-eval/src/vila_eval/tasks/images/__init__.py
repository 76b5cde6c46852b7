"""Questions about pictures: documents, charts, text, scenes, perception."""

from vila_eval.tasks.images.pope import POPE

IMAGE_TASKS = (POPE,)
