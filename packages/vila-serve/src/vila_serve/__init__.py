"""Serving for VILA Kit: an OpenAI-compatible server and a chat page."""

__version__ = "0.1.0"
