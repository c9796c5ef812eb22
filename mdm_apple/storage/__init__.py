"""Files that are whole or absent: model folders, tensors, single files."""
