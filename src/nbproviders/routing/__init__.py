"""Models made of other models: one that chooses among several, and one that answers from a recording."""
