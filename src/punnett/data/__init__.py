"""Prompt files in, rollouts and training rows out."""
