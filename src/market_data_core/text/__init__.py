"""Reading texts in columns, many rows at a time; what is not plain is left to the slow readers."""
