"""The service with batches of one claim: beside it, the service shows what group commit is worth."""

from pythonricing.app import app
from pythonricing.counting import lane

lane.MAX_BATCH = 1

__all__ = ["app"]
