"""The guard: filters that look at requests and answers, one module a filter."""

from factory.gateway.guard.chain import Chain
from factory.gateway.guard.findings import Decision, Finding
from factory.gateway.guard.json_schema import check_schema

__all__ = ["Chain", "Decision", "Finding", "check_schema"]
