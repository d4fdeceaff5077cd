"""Seeds worth keeping: of histories that failed once, and at which each mutant is noticed."""

#: What was wrong with the service, or with the simulation, stands in the commit that added the seed.
FAILED_ONCE: tuple[int, ...] = ()

NOTICED_AT: dict[str, int] = {
    "a count not written": 0,
    "absence believed": 7,
    "another batch while one is on its way": 1,
    "change begins at 0": 0,
    "composition changed under its number": 41,
    "composition of a receipt ignored": 41,
    "count not compared": 9,
    "halt cache kept after a change": 2,
    "one more admitted": 4,
    "orphans not told": 10,
    "plain claims rounded up": 4,
    "raise does not lift": 49,
    "receipt expires early": 41,
    "receipt not checked": 3,
    "receipt not written": 3,
    "receipt of a later batch ignored": 32,
    "record expires early": 5,
    "record not believed": 3,
    "record of another epoch believed": 16,
    "repeat takes a new sequence": 3,
    "replays in the wrong order": 3,
    "seen not sent": 7,
    "sequence read again for a repeat": 3,
}
