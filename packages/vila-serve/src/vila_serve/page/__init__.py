"""The chat page at `/`. It needs the extra `vila-serve[page]`."""
