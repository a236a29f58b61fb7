"""Second discriminators, one a file."""
