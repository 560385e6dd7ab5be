"""The forms in which image sets are published: how each is recognised in a folder, and how it is read."""
