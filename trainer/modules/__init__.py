"""The layers that an architecture may name: tables and encoders, interactions between fields, sequences."""
