"""Settings: frozen pydantic schemas, YAML in and out. Never imports torch."""
