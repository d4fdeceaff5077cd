"""A counter service that admits exactly N requests."""

#: The one place for it: pyproject.toml, `--version` and the OpenAPI document read it here.
__version__ = "0.1.0"
