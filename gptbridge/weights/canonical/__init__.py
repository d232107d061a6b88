"""The canonical weights of a checkpoint wherever its files have them: in pieces, cut for ranks, with LoRA."""
