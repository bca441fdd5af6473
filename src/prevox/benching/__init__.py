"""What `prevox bench` does: plan cells from a file, run what is missing, estimate, compare."""
