"""From prompts and seeds to pictures that contain their recipe."""
