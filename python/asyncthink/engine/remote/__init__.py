"""The protocol over any engine: the episode core against token-id completions. No torch, no transformers."""
