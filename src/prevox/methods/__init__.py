"""Pre-training methods, one folder each."""
