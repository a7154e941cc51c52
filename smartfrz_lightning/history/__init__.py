"""Tailored snapshots of weights, the window of the latest ones, and recordings of whole runs on disk."""
