"""Runs and evaluations as one self-contained HTML page."""
