"""Adapters for trainers and schedulers that people already use, each imported only by its user."""
