"""Files that are complete or absent: model folders, tensors, single files."""
