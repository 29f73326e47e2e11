"""Training: cold-start traces and supervised fine-tuning."""
