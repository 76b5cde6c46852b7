"""Metrics: pure functions (an answer and what was expected in, a score out), and the metric objects that tasks name.

`ALL` is what the plugin registers.
"""

from vila_eval.metrics.exact_match import EXACT_MATCH
from vila_eval.metrics.multiple_choice import MULTIPLE_CHOICE
from vila_eval.metrics.yes_no import POPE_METRIC

ALL = (EXACT_MATCH, MULTIPLE_CHOICE, POPE_METRIC)
