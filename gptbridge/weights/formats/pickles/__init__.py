"""Pickles decoded as data by an interpreter of their opcodes, and written."""
