"""What a training will take, before it starts: memory, operations, time and energy, at rates that are stated."""
