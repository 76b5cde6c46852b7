"""AWQ (Lin et al. 2023, arXiv:2306.00978): a search, block by block, for scales that protect important channels."""
