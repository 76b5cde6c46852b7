"""Operators of a decode step, fused into Triton kernels: norms, SwiGLU, rotary attention, small products, sampling.

Each is a torch custom op with a fake implementation, runs on the current stream, and can be captured in a CUDA graph;
`reference` has the same functions in plain PyTorch. Modules import Triton, so import them only where `support` says
that they can run.
"""
