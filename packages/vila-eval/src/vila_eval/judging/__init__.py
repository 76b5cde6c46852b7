"""Scoring answers with a judge model behind an OpenAI-compatible endpoint."""
