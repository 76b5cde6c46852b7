"""The HTTP API: OpenAI's chat completions and responses, models, health and metrics."""
