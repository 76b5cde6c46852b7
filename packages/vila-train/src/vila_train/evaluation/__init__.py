"""Evaluation of the network that is being trained."""
