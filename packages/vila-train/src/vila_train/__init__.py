"""Training for VILA Kit."""

__version__ = "0.1.0"
