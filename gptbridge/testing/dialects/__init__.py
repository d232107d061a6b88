"""The kit for dialects: what they are fed, how it comes back, and what must be noticed."""
