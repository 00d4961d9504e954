"""Stub of a command that comes next."""
def add_parser(c): pass
