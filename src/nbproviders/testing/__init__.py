"""Proving a provider: the promises that every provider keeps, each as a test of its own.

A test module subclasses `ProviderContract`, a notebook or script calls `check_provider`: both ask the same
clauses. What a provider is for, they do not know.
"""

from __future__ import annotations

from nbproviders.testing.contract import ProviderContract, check_provider
from nbproviders.testing.report import Report, Row

__all__ = ["ProviderContract", "Report", "Row", "check_provider"]
