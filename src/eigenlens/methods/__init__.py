"""Methods that find directions, one file each; `eigenlens.method.METHODS` lists them."""
