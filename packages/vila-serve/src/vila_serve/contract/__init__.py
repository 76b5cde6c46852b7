"""The contract of OpenAI's API as clients use it, checked against a running server of any make."""
