"""Metrics on the original grid, and statistics over subjects."""
