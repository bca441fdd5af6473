"""`prevox finetune`: a store with labels, and an encoder or none, become a segmentation run."""
