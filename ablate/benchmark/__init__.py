"""Speed of training, of a model and of its peers, measured side by side."""
