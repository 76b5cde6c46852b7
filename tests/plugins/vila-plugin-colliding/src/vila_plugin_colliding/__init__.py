"""Plugins whose names are taken."""
