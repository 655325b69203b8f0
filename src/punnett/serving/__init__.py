"""Finished students and bases that answer."""
