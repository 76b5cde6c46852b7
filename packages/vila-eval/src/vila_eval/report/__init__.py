"""Presenting results: the terminal table, the HTML report with thumbnails, and scalars for experiment trackers."""
