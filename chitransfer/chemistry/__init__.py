"""Polymer identity, features and χ from group contributions; this package knows SMILES but not tables or training."""
