"""Where the rows of a benchmark come from: hub datasets, local files, joined tables. Media stay undecoded."""
