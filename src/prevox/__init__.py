"""Prevox: pre-train medical-image networks on your own unlabelled scans."""
