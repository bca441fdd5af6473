"""The engine: loop, optimiser, schedule, checkpoints, tracking."""
