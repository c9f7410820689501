"""What `prorank rerank` does: requests in, their documents in the model's order out."""
