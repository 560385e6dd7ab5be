"""Metrics of tasks with ground truth: samples against the true images that their conditions were made of."""
