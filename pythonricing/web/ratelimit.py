"""What is left of a counter, for clients that know no counters: fields of draft-ietf-httpapi-ratelimit-headers-11."""

from __future__ import annotations

#: The policy's name in the fields and in `violated-policies`.
POLICY = "limit"
#: An integer of a structured field has at most 15 digits (RFC 9651), and so is less than the largest limit.
LARGEST = 10**15 - 1


def fields(limit: int, remaining: int) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit`. No window, because no time brings numbers back."""
    return {
        "ratelimit-policy": f'"{POLICY}";q={min(limit, LARGEST)}',
        "ratelimit": f'"{POLICY}";r={min(remaining, LARGEST)}',
    }
