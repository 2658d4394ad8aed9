"""Search: which models, devices and engine settings serve the most requests within latency limits, by simulation.

Needs neither torch nor vLLM.
"""

from __future__ import annotations

from dooly.searching._candidate import Candidate, combine
from dooly.searching._evaluation import Evaluation, evaluate
from dooly.searching._limits import LIMITED, check_limits, room, share_of_limit
from dooly.searching._load import Load, read_load
from dooly.searching._rates import index_up_to, rate_at
from dooly.searching._result import FoundCandidate, SearchResult
from dooly.searching._search import search

__all__ = [
    "LIMITED",
    "Candidate",
    "Evaluation",
    "FoundCandidate",
    "Load",
    "SearchResult",
    "check_limits",
    "combine",
    "evaluate",
    "index_up_to",
    "rate_at",
    "read_load",
    "room",
    "search",
    "share_of_limit",
]
