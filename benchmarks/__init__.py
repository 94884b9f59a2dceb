"""Measurements: each program compares a plain baseline with the default path in one run and prints one table."""
