"""Training, validation and test examples: given splits kept, missing ones drawn, within a task or over several."""
