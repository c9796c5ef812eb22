"""Captioned pictures in tar files, which are read by number."""
