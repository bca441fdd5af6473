"""Masked autoencoder (SelfMedMAE; MAE3D by settings)."""
