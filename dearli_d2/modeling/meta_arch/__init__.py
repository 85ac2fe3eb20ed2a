"""The models, one file each; importing a file registers its architecture."""
