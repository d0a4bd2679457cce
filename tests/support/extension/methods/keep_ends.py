"""A sample method that only adds a cache policy: the first and the newest tiles of a request stay."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from enginewright.exporters.capture.cache_formats import CacheFormat, PagedCacheFormat
from enginewright.exporters.methods.hooks import Method
from enginewright.runtime.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tiles that stay.

    first: at the beginning of a request.
    newest: at its end.
    """

    first: int = 1
    newest: int = 1


def extend_cache(config: Config, cache: CacheFormat) -> CacheFormat:
    """Return the format with the policy."""
    if not isinstance(cache, PagedCacheFormat):
        raise UnsupportedError(f"keep_ends: got a {cache.kind} cache, expected a paged one")
    policy = {"kind": "first_and_newest", "first": config.first, "newest": config.newest}
    return dataclasses.replace(cache, policy=policy)


METHOD = Method(name="keep_ends", summary="Keeps both ends of a request", config=Config, extend_cache=extend_cache)
