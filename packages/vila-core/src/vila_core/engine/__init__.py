"""Generation: KV cache, prefill and decode, sampling, stop conditions, guided decoding, streaming."""
