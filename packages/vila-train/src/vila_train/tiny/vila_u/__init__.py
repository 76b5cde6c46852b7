"""How vila-tiny-u is made: a tiny VILA-U that draws scenes of the drawn world from descriptions, and reads them."""
