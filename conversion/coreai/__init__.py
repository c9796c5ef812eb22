"""Core AI, Apple's successor of Core ML: writes its .aimodel files and runs them with its runtime."""
