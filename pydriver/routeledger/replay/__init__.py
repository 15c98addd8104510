"""Replay: what another routing policy would have cost, and how good it would have been.

Two sources. Your own ledger: the decisions of a window, each ranked anew by the database with what was
known the day before, and what they tell by their propensities (:mod:`.ledger`). Or a matrix, where every
model answered every prompt, so that nothing has to be estimated (:mod:`.matrix`, :mod:`.study`). The
ranking is always ``routeledger.rank_candidates``' own: there is no second one here.
"""

from .ledger import LedgerReplay, replay_ledger
from .lines import Line, Policy, read_policy
from .matrix import Matrix, MatrixError, find_matrix, generate, load_matrix, merged, without
from .study import Study, replay_matrix

__all__ = [
    "LedgerReplay",
    "Line",
    "Matrix",
    "MatrixError",
    "Policy",
    "Study",
    "find_matrix",
    "generate",
    "load_matrix",
    "merged",
    "read_policy",
    "replay_ledger",
    "replay_matrix",
    "without",
]
