"""Students in, scores out."""
