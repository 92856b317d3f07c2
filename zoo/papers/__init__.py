"""One folder a paper; each can be read, copied out and imported on its own."""
