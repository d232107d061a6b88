"""How each dialect lays a GPT out: one table of names and axes a dialect, one engine for all."""
