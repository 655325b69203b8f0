"""The nouns: frozen, plain values, no torch and no input or output."""
