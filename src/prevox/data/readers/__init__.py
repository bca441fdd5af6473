"""One reader per file family behind one protocol."""
