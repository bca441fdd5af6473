"""Residual encoder U-Net of nnU-Net."""
