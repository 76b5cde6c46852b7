"""Layouts of four-bit weights in files: AutoAWQ's GEMM layout and TinyChat's, packed and unpacked bit for bit."""
