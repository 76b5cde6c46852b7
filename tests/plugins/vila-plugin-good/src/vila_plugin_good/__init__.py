"""A third party's plugin for VILA Kit."""
