"""Where the teacher's distribution comes from: a model that runs on every batch, or what one pass of it has stored."""
