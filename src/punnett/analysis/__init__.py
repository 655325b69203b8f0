"""Scores in, effects and findings out."""
