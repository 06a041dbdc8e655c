"""Polymer identity, features, and χ from group contributions; knows SMILES, nothing of tables or training."""
