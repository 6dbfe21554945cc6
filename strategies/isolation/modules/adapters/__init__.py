"""Small networks inside or beside the layers."""
