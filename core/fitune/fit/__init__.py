"""Fit: the fastest composition of memory strategies that fits a card."""
