"""The programs `vila-infer` (`infer.py`) and `vila` (`main.py`), and what the programs of all distributions share."""
