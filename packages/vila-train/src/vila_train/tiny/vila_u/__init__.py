"""The making of vila-tiny-u: a tiny VILA-U that draws scenes of the drawn world from descriptions, and reads them."""
