"""The search methods, a file or folder each; `table` lists them all."""
