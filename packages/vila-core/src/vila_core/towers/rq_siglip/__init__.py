"""VILA-U's vision tower: SigLIP features, quantized residually, and the decoder that makes images of the codes."""
