"""How the embedded model vila-tiny is made: its drawn world, architecture, training recipe and test report."""
