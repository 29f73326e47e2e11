"""The paged tree cache: branches that share what they have in common, and the plan of each step. Knows no ops."""

from .branch import Branch, Segment
from .buffers import Capacity, PlanBuffers
from .pages import OutOfPages, PagePool
from .plan import StepPlan
from .stateful import RowPass, StatefulCache, StatefulPlan
from .states import OutOfStates
from .stats import CacheStats
from .storage import Group, KVStorage, LayerShape
from .tree import Scatter, TreeCache

__all__ = [
    "Branch",
    "CacheStats",
    "Capacity",
    "Group",
    "KVStorage",
    "LayerShape",
    "OutOfPages",
    "OutOfStates",
    "PagePool",
    "PlanBuffers",
    "RowPass",
    "Scatter",
    "Segment",
    "StatefulCache",
    "StatefulPlan",
    "StepPlan",
    "TreeCache",
]
