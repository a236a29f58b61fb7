"""The studio: a page in the browser that moves images along directions. It owns no behaviour; the library does."""
