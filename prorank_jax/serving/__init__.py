"""A reranker behind HTTP: requests share batches, limits keep the memory bounded. Needs the extra `serve`."""
