"""Sampling solvers and distillation algorithms, each a small file behind one registry."""
