"""Training loops, one readable file each."""
