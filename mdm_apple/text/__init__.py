"""From captions to numbers: tokens, cached features, encoders from a folder."""
