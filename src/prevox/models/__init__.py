"""Networks, and the transfer of weights between them."""
