"""Checks shared by the low-rank methods."""

from collections.abc import Sequence

NON_LINEAR_SITES = ("attn", "mlp", "norm")


def require_linear_sites(sites: Sequence[str]) -> None:
    """Check that `method.sites` names kinds of linear maps; ValueError if not."""
    for site in sites:
        if not site.isalpha() or site in NON_LINEAR_SITES:
            raise ValueError(
                f"method.sites: expected linear maps (q k v out up down gate patch), got {site!r}. Take some of these."
            )
