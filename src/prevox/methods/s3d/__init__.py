"""Sparse masked autoencoder for convolutional networks (S3D)."""
