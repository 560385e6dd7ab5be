"""Distillation algorithms: each trains a student from a teacher on the generic engine."""
