"""What a configuration says of a model, as rows that are read and written: the engine, no system's words."""
