"""Names, keys and budgets: shipped, from the environment, and from the user's one TOML file."""
