"""Small networks inside or beside the layers, or factors on what leaves them."""
