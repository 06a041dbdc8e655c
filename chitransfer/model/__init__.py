"""The network and its checkpoint file."""
