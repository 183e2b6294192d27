"""Fit: the fastest composition of memory strategies that fits a card."""

from __future__ import annotations
