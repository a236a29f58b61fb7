"""Readers that turn images into named scores, one file each; `eigenlens.reader.READERS` lists them."""
