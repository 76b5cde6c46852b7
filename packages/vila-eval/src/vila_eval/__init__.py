"""Evaluation for VILA Kit. Nothing is here yet: the README of this distribution says what will be."""

__version__ = "0.1.0"
