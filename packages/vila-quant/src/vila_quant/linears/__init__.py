"""Linear layers with quantized weights, and the compiled decoder built on them."""
