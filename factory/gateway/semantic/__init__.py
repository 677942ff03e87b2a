"""Tier 0's semantic cache: a hit must survive a guard and a calibrated threshold.

from factory.gateway.semantic import SemanticCache, calibrate
"""

from factory.gateway.semantic.cache import Hit, SemanticCache
from factory.gateway.semantic.calibrate import Calibration, calibrate
from factory.gateway.semantic.differences import Verdict, same

__all__ = ["Calibration", "Hit", "SemanticCache", "Verdict", "calibrate", "same"]
