"""What is trained or frozen: layers, models, pretrained encoders, and the roles of their parts."""
