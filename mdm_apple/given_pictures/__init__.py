"""Pictures from outside that sampling begins with or keeps: frames of clips, and pictures."""
