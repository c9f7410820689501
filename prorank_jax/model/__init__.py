"""The decoder: its mathematics, its families, its weights in and out of Hugging Face format."""
