"""Families of generators, one file each; `eigenlens.generator.GENERATORS` lists them."""
