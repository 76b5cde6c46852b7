"""The HTTP API: OpenAI's chat completions, responses and images, models, health and metrics."""
