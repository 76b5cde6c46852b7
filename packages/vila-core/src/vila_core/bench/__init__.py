"""`vila bench`: decoding, first token and prefill measured on this machine, beside the limits of its hardware."""
