"""Stage one, prompt warmup: GRPO teaches the model to answer 0 or 1."""
