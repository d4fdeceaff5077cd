"""A counter service that admits exactly N requests."""

#: The one place for it: pyproject.toml reads it here, everything else asks the package's metadata.
__version__ = "0.1.0"
