"""Weights from files, one door per format. Nothing here runs code that a file holds."""
