"""From prompts and seeds to pictures that remember how they were made."""
