"""Estimates of GPU memory and time, from shapes alone."""
