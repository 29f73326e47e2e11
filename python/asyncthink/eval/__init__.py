"""Measuring: held-out puzzles with intervals, and where the time of a step goes."""
