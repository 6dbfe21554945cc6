"""Shares of one network's weights or units, and sparse changes of them."""
