"""Seeds worth keeping: of histories that failed once, and at which each mutant is noticed."""

#: What was wrong with the service, or with the simulation, stands in the commit that added the seed.
FAILED_ONCE: tuple[int, ...] = ()

NOTICED_AT: dict[str, int] = {}
