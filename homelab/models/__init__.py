"""What a model is: the shape that decides its bytes, read from the model's own files."""
