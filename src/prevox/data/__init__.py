"""From files to batches: readers, layouts, catalogue, store, sampler, loader."""
