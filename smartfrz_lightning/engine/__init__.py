"""Freezing while any loop trains: when to ask a method, how all processes agree, and how its answer is applied."""
