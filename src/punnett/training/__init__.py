"""Training rows and a recipe in, an adapter out."""
