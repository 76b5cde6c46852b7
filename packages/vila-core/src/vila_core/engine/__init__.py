"""Generation: prefill and decode, sampling, stop conditions, guided decoding, streaming."""
