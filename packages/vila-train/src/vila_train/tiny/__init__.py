"""The making of the embedded model vila-tiny: its drawn world, architecture, training recipe and test report."""
