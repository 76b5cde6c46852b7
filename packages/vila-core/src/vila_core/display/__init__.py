"""What people see of objects: HTML and pictures in a notebook, and signatures with named arguments."""
