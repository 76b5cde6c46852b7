"""Renders the Jinja templates of checkpoints within limits on steps, sizes and output."""
