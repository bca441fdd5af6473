"""Hand pre-trained networks over to other tools."""
