"""A gptbridge backend that trains in NumPy."""
