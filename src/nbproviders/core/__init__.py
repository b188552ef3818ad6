"""Values and the waist: what a model is, and how a caller on any thread or loop reaches it."""
