"""Evaluation: scores of tensors, linear probes, and the files around them. Knows no model and no data set."""
