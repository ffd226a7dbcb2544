"""The flows as entry points of deployments: ``prefloop.deployable.iterative`` is there in a checkout and in a wheel."""

from flows.iterative import iterative
from flows.offline import offline

__all__ = ["iterative", "offline"]
