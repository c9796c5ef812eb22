"""How good pictures are, measured without downloads."""
