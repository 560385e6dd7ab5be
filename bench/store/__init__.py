"""The results folder: artefacts by address, rows, and who made them. Imports no torch."""
