"""Degradations: how a picture that a model is asked by is made of a true image, seeded image by image."""
