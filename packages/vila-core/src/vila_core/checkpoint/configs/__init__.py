"""Config files of other projects, translated to ours and back."""
