"""What the commands do: each reads its arguments, calls the library and prints.

Signatures and docstrings give the flags and their help.
"""
