"""Stage two, score learning: the difference of two token logits becomes a ranking score."""
