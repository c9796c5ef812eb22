"""What is in a package, and what would slow the Neural Engine down."""
