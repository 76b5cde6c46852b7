"""Training of a tower with codes (rq-siglip): reconstruction, commitment and contrast, with codebooks as averages.

The stage that comes before the language model in VILA-U (arXiv 2409.04429, section 3.1). Its code was never released;
the quantizer is trained as in RQ-VAE (arXiv 2203.01941), the contrast is SigLIP's (arXiv 2303.15343). RQ-VAE adds a
perceptual and an adversarial loss, which sharpen photographs. Here they are left out: flat drawings do not need them.
"""
