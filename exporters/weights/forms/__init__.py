"""Stored forms of weights, one module each; a module's FORM encodes weights and writes the nodes that read them."""
