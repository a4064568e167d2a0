"""What the user brings: model, data, loss, recipe and target, loaded, checked and built."""
