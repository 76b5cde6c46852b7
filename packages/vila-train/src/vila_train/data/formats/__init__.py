"""What the records of each format mean: readers that turn one record into messages."""
