"""The probes, on a service that is well."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtests.rig.service import Service


def test_the_probes_answer(api: Service) -> None:
    assert api.get("/livez") == (200, {"status": "alive"})
    assert api.get("/readyz") == (200, {"status": "ready"})
