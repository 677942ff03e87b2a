"""`cache`: what tier 0 keeps, for how long, and how sure it must be."""

from __future__ import annotations

from pydantic import Field

from factory.config.section import Section


class SemanticCache(Section):
    """Answers to questions that mean the same in other words."""

    max_false_hits: float = Field(default=0.01, gt=0, lt=0.5)
    """Largest tolerated share of hits whose question means something else. A team's threshold is
    calibrated to it; without a calibration the cache stays off for that team."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the bound above."""
    max_entries: int = Field(default=20_000, ge=1)
    """Questions kept in memory per endpoint and gateway replica."""


class Cache(Section):
    """Tier 0."""

    max_entries: int = Field(default=10_000, ge=0)
    """Answers kept, in memory and in the database; 0 switches the cache off."""
    max_entry_bytes: int = Field(default=200_000, ge=1)
    """A larger answer is not kept."""
    ttl_s: float = Field(default=3600, gt=0)
    """Seconds an answer stays valid."""
    semantic: SemanticCache = SemanticCache()
    """For endpoints with `semantic_cache: true`."""
    embeddings: int = Field(default=50_000, ge=0)
    """Embeddings kept per gateway replica; 0 keeps none."""
    retrievals: int = Field(default=10_000, ge=0)
    """Results of searches in vector stores kept per gateway replica; 0 keeps none."""
