"""The pipeline of `vila-quant awq`: from a full-precision checkpoint to a quantized one."""
