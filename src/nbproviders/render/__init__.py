"""Tables, charts and pages from rows and values; knows presentation, never models."""
