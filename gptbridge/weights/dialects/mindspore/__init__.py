"""MindSpore's rank folders and strategy files, for the dialect that is trained on it."""
