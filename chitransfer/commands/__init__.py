"""The commands of the command line, one file per area; `cli` puts them together."""
