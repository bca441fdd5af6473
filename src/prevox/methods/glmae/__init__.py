"""Global-local masked autoencoder (GL-MAE)."""
