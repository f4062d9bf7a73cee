"""Everything that touches torch: architectures, the builder, training, search methods."""
