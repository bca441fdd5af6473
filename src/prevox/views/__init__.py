"""Batch transforms on the device; parameters are drawn first, applied after."""
