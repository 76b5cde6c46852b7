"""How four-bit weights lie in files: AutoAWQ's GEMM layout and TinyChat's, both ways and bit for bit."""
