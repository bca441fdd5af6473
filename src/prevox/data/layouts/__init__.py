"""Recognise how a folder of scans is organised."""
