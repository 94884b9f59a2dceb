"""Evaluation: metrics over tensors, and the files they are computed from. Knows no model."""
