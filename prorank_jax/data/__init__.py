"""Collections, first-stage candidates, training examples and batches."""
