"""Training: supervised fine-tuning on demonstrations (cold start), then GRPO over whole episodes."""
