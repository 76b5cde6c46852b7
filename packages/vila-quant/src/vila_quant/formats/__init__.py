"""Formats of quantized checkpoints: AutoAWQ's GEMM layout (`awq`) and TinyChat's (`tinychat`)."""
