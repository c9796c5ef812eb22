"""Quality of pictures, measured without downloads."""
