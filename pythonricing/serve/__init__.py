"""Commands and servers."""
