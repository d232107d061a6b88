"""One file a dialect: what a system's checkpoints look like, as data. `dialect.py` says what a dialect is."""
