"""What is left of a counter, for clients that know no counters: fields of draft-ietf-httpapi-ratelimit-headers-11."""

from __future__ import annotations

#: The policies' names in the fields and in `violated-policies`: the counter's limit, and that of each claimant.
LIMIT, EACH = "limit", "each"
#: An integer of a structured field has at most 15 digits (RFC 9651), and so is less than the largest limit.
LARGEST = 10**15 - 1


def fields(limit: int, remaining: int, each: int = 0, resets: int = 0) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit`. `resets` is in how many seconds the counter renews, 0: never.

    No window in the policy: days and months are not equally long. What a claimant has left is not told: workers don't
    know it.
    """
    policies = f'"{LIMIT}";q={min(limit, LARGEST)}' + (f', "{EACH}";q={min(each, LARGEST)}' if each else "")
    left = f'"{LIMIT}";r={min(remaining, LARGEST)}' + (f";t={resets}" if resets else "")
    return {"ratelimit-policy": policies, "ratelimit": left}
