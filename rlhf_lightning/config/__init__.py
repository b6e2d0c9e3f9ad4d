"""From a command line to a judged config of plain Python. Imports no torch."""
