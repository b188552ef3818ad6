"""One provider each, over its runtime. Reached by entry point only, like anyone's."""
