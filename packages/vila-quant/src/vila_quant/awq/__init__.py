"""AWQ (Lin et al. 2023, arXiv:2306.00978): scales that protect the channels that matter, and clipped ranges, searched block by block."""
