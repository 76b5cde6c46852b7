"""Training data: readers of datasets, the registry that names them, and mixtures."""
