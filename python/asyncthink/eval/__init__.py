"""Evaluation on held-out puzzles with intervals, and the profile of a decode step."""
