"""From any dialect to any other: find the files, match the layout, stream the bytes, verify."""
