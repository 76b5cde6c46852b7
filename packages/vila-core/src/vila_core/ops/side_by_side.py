"""Up to three weights whose outputs lie side by side: which of them an output belongs to."""

# Triton has no types: a kernel's arguments and its launch are not checked.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false

import triton
import triton.language as tl


@triton.jit
def pick(row, first, second, third, outputs_0, outputs_1):
    """Return which of three pointers is for output `row` of the weights side by side."""
    return tl.where(row < outputs_0, first, tl.where(row < outputs_0 + outputs_1, second, third))


@triton.jit
def own_row(row, outputs_0, outputs_1):
    """Return the row's number in its own weight."""
    return row - tl.where(row < outputs_0, 0, tl.where(row < outputs_0 + outputs_1, outputs_0, outputs_0 + outputs_1))
