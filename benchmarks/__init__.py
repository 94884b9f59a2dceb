"""Measurements of speed, of quality against network calls, and of what a run survives; see RESULTS.md."""
