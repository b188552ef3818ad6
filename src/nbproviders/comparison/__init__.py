"""Models by prompts: the grid, its run, scorers, statistics and the result."""
