"""How an entry of a comparison goes through a stream; the references among them."""
