"""The contract of OpenAI's API as clients use it, checked against any running server."""
