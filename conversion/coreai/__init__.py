"""Core AI, Apple's successor of Core ML: its .aimodel files, and Apple's runtime for them."""
