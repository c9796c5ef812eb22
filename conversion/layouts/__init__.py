"""Which networks become packages, and how they are wired."""
