"""Serving signals, the autoscaling policy, and its simulator. Pure; Ray stays in `serve_apps`."""

from factory.scaling.arbitration import Claim, Grant, arbitrate
from factory.scaling.policy import Decision, State, decide
from factory.scaling.signals import ReplicaSignals, Signals, Tally, gather
from factory.scaling.target import Target, class_of, of_endpoints, of_model

__all__ = [
    "Claim",
    "Decision",
    "Grant",
    "ReplicaSignals",
    "Signals",
    "State",
    "Tally",
    "Target",
    "arbitrate",
    "class_of",
    "decide",
    "gather",
    "of_endpoints",
    "of_model",
]
