"""How a clip becomes a file, and a file a clip. The recipe inside is a text here."""
