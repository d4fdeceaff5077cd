"""A counter service that admits exactly N requests."""
