"""Output that is not text: heads that draw images and videos, and what the engine needs to run them."""
