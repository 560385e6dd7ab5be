"""AMED: a small network that predicts where inside a step a solver evaluates (arXiv 2312.00094)."""
