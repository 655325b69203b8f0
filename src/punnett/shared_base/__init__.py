"""One frozen base that many adapters share: sequences of many students in one forward pass, each as if it were alone."""
