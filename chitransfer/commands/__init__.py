"""The verbs of the command line, a file per part of the work; `cli` puts them together."""
