"""Exams and reasoning about images."""

from vila_eval.tasks.knowledge.mathvista import MATHVISTA_TEST, MATHVISTA_TESTMINI
from vila_eval.tasks.knowledge.mmmu import MMMU_TASKS

KNOWLEDGE_TASKS = (*MMMU_TASKS, MATHVISTA_TESTMINI, MATHVISTA_TEST)
