"""Evaluation for VILA Kit: metrics and statistics. The README of this distribution says what is still to come."""

__version__ = "0.1.0"
