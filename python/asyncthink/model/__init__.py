"""Any transformers decoder on the paged tree cache: loading, checks, the attention hook, packed and compiled steps."""
