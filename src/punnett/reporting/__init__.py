"""Effects in, pictures and a page out."""
