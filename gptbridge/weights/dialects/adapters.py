"""Adapters in folders of their own: the one form that is read and written, whatever their base model is."""

from gptbridge.weights.dialects.peft import adapter_alone, base_of, read_adapter, write_adapter_files

__all__ = ["adapter_alone", "base_of", "read_adapter", "write_adapter_files"]
