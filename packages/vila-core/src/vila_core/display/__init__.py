"""Display of objects: HTML and images in a notebook, and signatures with named arguments."""
