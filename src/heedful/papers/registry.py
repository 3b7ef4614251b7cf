"""All claims by name, in the order of the papers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from heedful.papers import boosted_claims, multi_token_claims, nonlinear_query_claims, twicing_claims
from heedful.papers.claim import Claim
from heedful.schema import did_you_mean


def _by_name(claims: Iterable[Claim]) -> Mapping[str, Claim]:
    named: dict[str, Claim] = {}
    for claim in claims:
        if claim.name in named:
            raise ValueError(f"two claims are called {claim.name!r}.")
        named[claim.name] = claim
    return MappingProxyType(named)


CLAIMS: Mapping[str, Claim] = _by_name(
    (
        *boosted_claims.CLAIMS,
        *twicing_claims.CLAIMS,
        *nonlinear_query_claims.CLAIMS,
        *multi_token_claims.CLAIMS,
    )
)


def claim_named(name: str) -> Claim:
    """Return the claim called `name`.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in CLAIMS:
        raise ValueError(f"there is no claim {name!r}.{did_you_mean(name, CLAIMS)}")
    return CLAIMS[name]
