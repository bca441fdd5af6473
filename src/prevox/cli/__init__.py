"""The command line: a table of verbs and their dispatch. Never imports torch."""
