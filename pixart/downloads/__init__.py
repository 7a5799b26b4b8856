"""Published weights: the catalogue, and downloading from the model hub on request."""
