"""One forward pass: hooks, building the stack, the equal passes, the loss."""
