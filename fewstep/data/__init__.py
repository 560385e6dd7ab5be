"""Data sets, each a fixed train/held-out split, and the batches that training draws from them."""
