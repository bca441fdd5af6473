"""Convolutional networks on the visible blocks of masked images."""
