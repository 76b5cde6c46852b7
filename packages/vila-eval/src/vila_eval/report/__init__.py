"""What is made of results: the terminal table, the HTML page with its pictures, and scalars for experiment trackers."""
