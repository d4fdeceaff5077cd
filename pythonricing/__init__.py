"""A counter service that admits exactly N requests, and the same counters for any asyncio application."""

from __future__ import annotations

from typing import TYPE_CHECKING

#: The one place for it: pyproject.toml reads it here, everything else asks the package's metadata.
__version__ = "0.1.0"

if TYPE_CHECKING:
    from pythonricing.counting.model import (
        Answer,
        BadRules,
        ClaimantMissing,
        ClaimantUnwanted,
        Counter,
        HoldExpired,
        HoldResolved,
        KeyReused,
        NoSuchCounter,
        NoSuchHold,
        NoSuchNumber,
        Resolution,
        StateLost,
        StoreError,
        StoreRejected,
        StoreUnavailable,
        StoreURLError,
        TooMany,
    )
    from pythonricing.library import OpenCounters, open_counters

__all__ = [
    "Answer",
    "BadRules",
    "ClaimantMissing",
    "ClaimantUnwanted",
    "Counter",
    "HoldExpired",
    "HoldResolved",
    "KeyReused",
    "NoSuchCounter",
    "NoSuchHold",
    "NoSuchNumber",
    "OpenCounters",
    "Resolution",
    "StateLost",
    "StoreError",
    "StoreRejected",
    "StoreURLError",
    "StoreUnavailable",
    "TooMany",
    "open_counters",
]


def __getattr__(name: str) -> object:
    """Import the library when somebody uses it, and not with every part of the service."""
    if name in __all__:
        from pythonricing import library
        from pythonricing.counting import model

        return getattr(library, name, None) or getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
