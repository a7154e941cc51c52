"""CacheUse: what a front cache did, for the report."""

from dataclasses import dataclass

ENDED = "training ended"
"""Why a cache is off that did well to the end."""


@dataclass
class CacheUse:
    """What a cache did.

    Attributes:
        hits: Samples that the front was not run for.
        misses: Samples that it was run for.
        gigabytes: Kept at most.
        seconds: That were saved.
        ends: Which parts of the frozen front could not be kept, and why.
        problem: Why nothing more is written to its folder.
        stopped: Why the cache was switched off; empty while it is on.
    """

    hits: int = 0
    misses: int = 0
    gigabytes: float = 0.0
    seconds: float = 0.0
    ends: str = ""
    problem: str = ""
    stopped: str = ""
