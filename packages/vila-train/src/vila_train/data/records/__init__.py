"""Records of a dataset's files by number: JSON, webdataset archives, tables. What they mean is said in `formats`."""
