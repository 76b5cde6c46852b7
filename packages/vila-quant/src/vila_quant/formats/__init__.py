"""Quantized checkpoints on disk: AutoAWQ's GEMM layout (`awq`), TinyChat's (`tinychat`), and llm-awq's search results."""
