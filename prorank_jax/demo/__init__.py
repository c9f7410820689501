"""The built-in demonstration: a generated collection and a tiny base model."""
