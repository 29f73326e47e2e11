"""The paged tree cache: branches that share what they have in common, and the plan of each step. Knows no ops."""

from .branch import Branch, Segment
from .buffers import Capacity, PlanBuffers
from .pages import OutOfPages, PagePool
from .plan import StepPlan
from .storage import Group, KVStorage, LayerShape
from .tree import CacheStats, Scatter, TreeCache

__all__ = [
    "Branch",
    "CacheStats",
    "Capacity",
    "Group",
    "KVStorage",
    "LayerShape",
    "OutOfPages",
    "PagePool",
    "PlanBuffers",
    "Scatter",
    "Segment",
    "StepPlan",
    "TreeCache",
]
